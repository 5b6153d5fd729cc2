"""Result files that are whole or absent. The benchmark needs nothing but torch, so it has its own few lines."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
    """Writes `path` whole: the content goes to a file beside it, which then takes its place. The folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(beside, path)
