"""Atomic file writes: a file is either complete or absent, even if the machine stops while it is written."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, and is deleted if the block raises.

    Creates the folder if needed. A new file has the mode that open() gives; a file that exists keeps its mode. The
    content is written to a temporary file in the same folder, so that the final move is atomic.
    """
    path = Path(path)
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Raise OSError for a folder, which no file can replace, and for a name below a file."""
    expected = f"path: expected the name of a file to write, got {path}"
    if path.is_dir():
        raise IsADirectoryError(f"{expected}, which is a folder.")
    above = next((folder for folder in path.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise NotADirectoryError(f"{expected}, but {above} is a file. Choose a name in a folder.")


def remove_unfinished(path: Path) -> None:
    """Delete the temporary files of killed processes that wrote `path`. Only one process at a time may write it."""
    for temporary in path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 32}"):
        temporary.unlink()
