"""Image sets: `load_images(name)`. A new set needs a module and a row of SETS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .emoji import load_emoji
from .folder import load_folder, load_market1501
from .glyphs import load_glyphs
from .image_set import ImageSet

__all__ = ["SETS", "ImageSet", "load_images"]

# name -> loader(size, root); sets from installed packages do not use root
SETS: dict[str, Callable[[int, Path | None], ImageSet]] = {
    "emoji": lambda size, root: load_emoji(size),
    "glyphs": lambda size, root: load_glyphs(size),
    "folder": load_folder,
    "market1501-train": lambda size, root: load_market1501(size, root, "train"),
    "market1501-test": lambda size, root: load_market1501(size, root, "test"),
}


def load_images(name: str, *, size: int = 64, root: str | Path | None = None) -> ImageSet:
    """The image set `name`, one of SETS, `size` pixels high; `root` is the folder of a set on disk."""
    if name not in SETS:
        raise ValueError(f"name: expected one of {', '.join(SETS)}, got {name!r}")
    if size < 1:
        raise ValueError(f"size: expected at least 1 pixel, got {size}")
    return SETS[name](size, None if root is None else Path(root))
