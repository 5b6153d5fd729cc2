"""Thumbnails of the photos that rows of a gallery name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ..thumbnail import thumbnail


def photo_file(id: object, file: object) -> Path | None:
    """The photo of a row, symbolic links resolved. None if it is gone, or outside the folder that was indexed.

    `dissim index` gives a photo the id of its path below that folder, so the folder is `file` without the id.
    """
    if not isinstance(id, str) or not isinstance(file, str) or not file.endswith(f"/{id}"):
        return None
    folder, path = Path(file.removesuffix(id)).resolve(), Path(file).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def photo_thumbnail(id: object, file: object) -> bytes | None:
    """A JPEG of the photo of a row; None if there is none that can be read. The last thousand are kept, 8 KB each."""
    path = photo_file(id, file)
    try:
        status = None if path is None else path.stat()
    except OSError:  # deleted just now
        return None
    return None if status is None else _thumbnail(str(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1000)
def _thumbnail(path: str, modified: int, size: int) -> bytes | None:
    return thumbnail(path)
