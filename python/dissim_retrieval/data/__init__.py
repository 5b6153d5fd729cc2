"""Image sets: `load_images`, `load_split`, `load_unlabeled`. A new set needs a module and a row of a table here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

from .cars196 import load_cars196
from .cub200 import load_cub200
from .emoji import load_emoji
from .folder import load_folder, load_photos
from .glyphs import load_glyphs
from .image_files import ImageFiles
from .image_set import ImageSet
from .inshop import load_inshop
from .layout import OfficialLoader, Size
from .market1501 import load_dukemtmc, load_market1501
from .msmt17 import load_msmt17
from .sop import load_sop
from .split import Split, hold_out
from .veri776 import load_veri776

__all__ = ["OFFICIAL", "SETS", "ImageFiles", "ImageSet", "Split", "load_images", "load_split", "load_unlabeled"]

#: Name -> loader(part, size, root), for the sets with an official split.
OFFICIAL: dict[str, OfficialLoader] = {
    "market1501": load_market1501,
    "dukemtmc": load_dukemtmc,
    "msmt17": load_msmt17,
    "veri776": load_veri776,
    "cub200": load_cub200,
    "cars196": load_cars196,
    "sop": load_sop,
    "inshop": load_inshop,
}
#: Every name that `load_images` knows -> loader(size, root); sets from installed packages do not use root.
SETS: dict[str, Callable[[Size, Path | None], ImageSet]] = {
    "emoji": lambda size, root: load_emoji(_one_number(size)),
    "glyphs": lambda size, root: load_glyphs(_one_number(size)),
    "folder": load_folder,
    **{f"{name}-{part}": partial(load, part) for name, load in OFFICIAL.items() for part in ("train", "test")},
}  # type: ignore[arg-type]


def load_images(
    name: str, *, size: Size = 64, root: str | PathLike | None = None, skip_damaged: bool = False
) -> ImageSet:
    """The image set `name`, one of SETS; sets on disk are listed, not decoded.

    Args:
        size: (height, width) in pixels, or one number: square images, for people half as wide as high.
        root: the folder of a set on disk.
        skip_damaged: decode every image once, and skip those that cannot be decoded. Otherwise the first of them that
            is read raises a ValueError.
    """
    if name not in SETS:
        raise ValueError(f"name: expected one of {', '.join(SETS)}, got {name!r}")
    images = replace(SETS[name](_checked(size), None if root is None else Path(root)), name=name)
    return images.without_damaged() if skip_damaged else images


def load_unlabeled(root: str | PathLike, size: Size, *, skip_damaged: bool = False) -> ImageSet:
    """All images below a folder, or one image file, without identities: each is an identity of its own."""
    images = replace(load_photos(_checked(size), Path(root)), name="photos")
    return images.without_damaged() if skip_damaged else images


def load_split(
    name: str,
    *,
    size: Size = 64,
    root: str | PathLike | None = None,
    val_fraction: float | None = None,
    train_fraction: float | None = None,
    seed: int = 0,
    skip_damaged: bool = False,
) -> Split:
    """The image set `name` in parts for training, validation and testing, which share no identity.

    name: one of SETS, or of OFFICIAL for both parts of a set with an official split ("market1501"). These parts stay
    as they are. From the others, `train_fraction` of the identities are for training and the rest for testing. None:
    half of "emoji" and "glyphs"; all of "folder", which then has no test part.

    val_fraction: the fraction of the training identities with two or more images that is held out for validation
    (`split.hold_out`). None: a tenth if there is no test part, otherwise none. Sets with fewer than 20 such
    identities hold none out; with a val_fraction above 0 they are an error.
    """
    load = partial(load_images, size=size, root=root, skip_damaged=skip_damaged)
    split = partial(split_images, val_fraction=val_fraction, train_fraction=train_fraction, seed=seed)
    if name in OFFICIAL:
        return replace(split(load(f"{name}-train")), test=load(f"{name}-test"))
    return split(load(name))


def split_images(
    images: ImageSet, *, val_fraction: float | None = None, train_fraction: float | None = None, seed: int = 0
) -> Split:
    """A set that `load_images` loaded, in parts, as `load_split` describes them."""
    name, _, part = images.name.partition("-")
    if name in OFFICIAL and train_fraction is not None:
        raise ValueError(f"train_fraction: expected None for {name}, which has a split, got {train_fraction}")
    train: ImageSet
    test: ImageSet | None = None
    default_val_fraction = 0.0
    if name in OFFICIAL:
        if part == "test":
            return Split(None, None, images)
        train = images
    elif name == "folder" and train_fraction is None:
        train, default_val_fraction = images, 0.1
    else:
        train, test = images.split_labels(0.5 if train_fraction is None else train_fraction, seed)
    train, validation = hold_out(train, val_fraction, seed, default=default_val_fraction)
    return Split(train, validation, test)


def _checked(size: Size) -> Size:
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size: expected at least 1 pixel, as one number or (height, width), got {size!r}")
    return size if isinstance(size, int) else sides  # type: ignore[return-value]


def _one_number(size: Size) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"size: expected a square, since this set is drawn in squares, got {height} x {width}")
    return height
