"""Atomic file writes: a file is either complete or absent, even if the machine stops while it is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, and is deleted if the block raises.

    Creates the folder if needed. The content is written to a temporary file in the same folder, so that the final
    move is atomic.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp creates files that only the owner can read
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
