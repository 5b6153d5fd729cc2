"""The image files below a folder, and one line about the files that are skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..logs import get_logger
from .decode import ENDINGS, printable

logger = get_logger(__name__)

#: Endings of pictures that are not decoded.
UNSUPPORTED = {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".svg", ".psd"}


def list_images(root: Path) -> list[str]:
    """Paths of all image files below `root`, relative to it, sorted by name within each folder.

    Names that begin with a dot are hidden and not mentioned. Other files that are no images are counted in one
    warning. Linear in the number of files; no file is opened.
    """
    paths, skipped = [], Counter[str]()
    for path in _walk(os.fspath(root), "", ()):
        ending = os.path.splitext(path)[1].lower()
        if ending in ENDINGS:
            paths.append(path)
        else:
            skipped[ending or "no ending"] += 1
    if skipped:
        endings = ", ".join(f"{count} {printable(ending)}" for ending, count in sorted(skipped.items()))
        pictures = ", ".join(sorted(skipped.keys() & UNSUPPORTED))
        remedy = f". Convert {pictures} to .jpg or .png" if pictures else ""
        warn_skipped(root, skipped.total(), "file", f"of other types ({endings}){remedy}")
    return paths


def warn_skipped(root: Path, count: int, kind: str, reason: str) -> None:
    """One line, which Python prints to stderr unless logging is configured otherwise."""
    logger.warning(
        "%s: skipped %d %s%s %s", printable(os.fspath(root)), count, kind, "" if count == 1 else "s", reason
    )


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Relative paths of the files; `above`: the folders that contain this one, for links that lead back to them."""
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    status = os.stat(folder)
    above = (*above, (status.st_dev, status.st_ino))
    for entry in visible:
        if not entry.is_dir():
            yield prefix + entry.name
        elif not (entry.is_symlink() and _key(entry.path) in above):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", above)


def _key(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
