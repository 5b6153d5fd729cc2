"""What the layouts on disk share: checks that a layout is there, and the image set of its rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from .image_files import ImageFiles
from .image_set import ImageSet

#: Height and width in pixels. One number: square images, for people half as wide as high.
Size = int | tuple[int, int]
Part = Literal["train", "test"]
#: Reads a part of a set that has an official split.
OfficialLoader = Callable[[Part, Size, Path | None], ImageSet]


class Row(NamedTuple):
    """An image of a set on disk; `path` is relative to the root. camera None: the set has no cameras."""

    path: str
    identity: str
    camera: int | None = None
    query: bool = False


def require_folder(root: Path | None) -> Path:
    """`root`, which must be a folder."""
    if root is None:
        raise NotADirectoryError("root: expected the folder of the image set, got None. Pass its path.")
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise NotADirectoryError(f"root: expected the folder of the image set, got {root}, which {what}.")
    return root


def require_entries(root: Path | None, entries: Sequence[str], layout: str) -> Path:
    """`root`, which must contain these files and folders; `layout` describes the whole set to the reader."""
    root = require_folder(root)
    missing = [entry for entry in entries if not (root / entry).exists()]
    if missing:
        raise FileNotFoundError(f"root: expected {layout}, got {root} without {' and '.join(missing)}")
    return root


def square(size: Size) -> tuple[int, int]:
    """(H, W) of images whose default is square."""
    return (size, size) if isinstance(size, int) else size


def upright(size: Size) -> tuple[int, int]:
    """(H, W) of images of people, whose default is half as wide as high."""
    return (size, max(1, size // 2)) if isinstance(size, int) else size


def image_set(
    root: Path,
    rows: Sequence[Row],
    *,
    size: tuple[int, int],
    credit: str,
    layout: str,
    has_queries: bool = False,
) -> ImageSet:
    """The set of these rows, identities and cameras numbered in order; `layout` is for the error message.

    has_queries: some rows are queries, the others their gallery. Otherwise every image is both.
    """
    for kind, query in (("query", True), ("gallery", False)):
        if has_queries and query not in {row.query for row in rows}:
            raise ValueError(f"root: expected {layout}, found no {kind} images in {root}.")
    if not rows:
        raise ValueError(f"root: expected {layout}, found no such images in {root}.")
    identities = {identity: number for number, identity in enumerate(sorted({row.identity for row in rows}))}
    cameras = {camera: number for number, camera in enumerate(sorted({row.camera or 0 for row in rows}))}
    return ImageSet(
        images=ImageFiles(os.fspath(root), [row.path for row in rows], size),
        labels=torch.tensor([identities[row.identity] for row in rows]),
        cameras=torch.tensor([cameras[row.camera or 0] for row in rows]),
        label_names=list(identities),
        camera_names=["all"] if rows[0].camera is None else [f"c{camera}" for camera in cameras],
        credit=credit,
        queries=torch.tensor([row.query for row in rows]) if has_queries else None,
    )


def require_files(root: Path, rows: Sequence[Row], source: str, layout: str) -> None:
    """Every file that the list `source` names must exist."""
    missing = [row.path for row in rows if not (root / row.path).exists()]
    if missing:
        raise FileNotFoundError(
            f"root: expected {layout}, got {root} without {len(missing)} of the {len(rows)} images that {source} "
            f"lists, the first being {missing[0]}"
        )
