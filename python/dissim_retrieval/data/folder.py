"""Your own photos: a folder for each identity, or photos without identities."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .decode import printable
from .image_files import ImageFiles
from .image_set import ImageSet
from .layout import Row, Size, image_set, require_folder, square
from .listing import list_images, warn_skipped


def load_folder(size: Size, root: Path | None) -> ImageSet:
    """root/<identity>/<image>, also with folders below those of the identities; one camera."""
    root = require_folder(root)
    paths = list_images(root)
    rows = [Row(path, printable(path.split("/", 1)[0])) for path in paths if "/" in path]
    if len(rows) < len(paths):
        warn_skipped(root, len(paths) - len(rows), "image", "outside of the folders of identities")
    layout = "images as <identity>/<image>, a folder for each identity"
    return image_set(root, rows, size=square(size), credit=root.name, layout=layout)


def load_photos(size: Size, root: Path) -> ImageSet:
    """All images below the folder `root`, or the one file `root`, each as an identity of its own."""
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder.")
    if root.is_file():
        root, paths = root.parent, [root.name]
    else:
        root = require_folder(root)
        paths = list_images(root)
    if not paths:
        raise ValueError(
            f"{root}: expected an image or a folder with images, found none. Convert those of other types, such as"
            " .heic, to .jpg or .png."
        )
    files = ImageFiles(os.fspath(root), paths, square(size))
    return ImageSet(
        images=files,
        labels=torch.arange(len(files)),
        cameras=torch.zeros(len(files), dtype=torch.int64),
        label_names=files.ids(),
        camera_names=["all"],
        credit=root.name,
    )
