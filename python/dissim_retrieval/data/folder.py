"""Your own photos: a folder for each identity, or photos without identities."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .decode import printable
from .identity_camera import names_identity_and_camera
from .image_files import ImageFiles
from .image_set import ImageSet
from .layout import Row, Size, image_set, require_folder, square
from .listing import list_images, warn_skipped

LAYOUT = "images as <identity>/<image>, a folder for each identity"
#: Files and folders by which a set with an official split is recognized -> the name of the set.
OFFICIAL_LAYOUTS = {
    ("bounding_box_train", "query"): "market1501",
    ("bounding_box_train", "bounding_box_test"): "market1501",
    ("image_train", "image_query"): "veri776",
    ("list_train.txt", "list_query.txt"): "msmt17",
    ("images/001.Black_footed_Albatross",): "cub200",
    ("cars_annos.mat", "car_ims"): "cars196",
    ("cars_train", "cars_test"): "cars196",
    ("Ebay_train.txt", "Ebay_test.txt"): "sop",
    ("Eval/list_eval_partition.txt",): "inshop",
}


def load_folder(size: Size, root: Path | None) -> ImageSet:
    """root/<identity>/<image>, also with folders below those of the identities; one camera."""
    root = require_folder(root)
    _check_no_official_set(root)
    paths = list_images(root)
    rows = [Row(path, printable(path.split("/", 1)[0])) for path in paths if "/" in path]
    if not rows:
        _check_no_official_part(root, paths)
    if len(rows) < len(paths):
        warn_skipped(root, len(paths) - len(rows), "image", "outside of the folders of identities")
    return image_set(root, rows, size=square(size), credit=root.name, layout=LAYOUT)


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


def _official_set(root: Path) -> tuple[str, tuple[str, ...]] | None:
    """The name of the official set whose layout `root` has, and the files and folders that show it."""
    for entries, name in OFFICIAL_LAYOUTS.items():
        if all((root / entry).exists() for entry in entries):
            return name, entries
    return None


def _check_no_official_set(root: Path) -> None:
    if found := _official_set(root):
        name, entries = found
        duke = " or, if it is DukeMTMC-reID, dukemtmc" if name == "market1501" else ""
        raise ValueError(
            f"root: expected {LAYOUT}, got {root}, which looks like {name} (it has {' and '.join(entries)}). Pass"
            f' the name "{name}", on the command line --data {name}{duke}. If these are folders of identities, rename'
            " one of them."
        )


def _check_no_official_part(root: Path, paths: list[str]) -> None:
    """Images in no folder of an identity: is `root` a part of an official set?"""
    parent = root.resolve().parent
    found = _official_set(parent)
    named = next(filter(names_identity_and_camera, paths), None)
    if found is None and named is None:
        return
    name = found[0] if found else "market1501"
    like = f"a part of {name}" if found else f"with file names like those of {name} ({printable(named or '')})"
    raise ValueError(
        f'root: expected {LAYOUT}, got {root}, {like}. Pass the name "{name}" and the folder above as root, on the'
        f" command line --data {name} --root {parent}."
    )
