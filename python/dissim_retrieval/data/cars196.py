"""Cars-196 (Krause et al., 2013): classes 1 to 98 to train, 99 to 196 to test, as usual in metric learning.

In one of two layouts:

    root/cars_annos.mat, root/car_ims/000001.jpg

    root/cars_train/00001.jpg, root/cars_test/00001.jpg
    root/devkit/cars_train_annos.mat, root/devkit/cars_test_annos_withlabels.mat

The official training and test images, which both have all classes, are merged. Needs SciPy to read .mat files.
"""

from __future__ import annotations

from pathlib import Path

from .image_set import ImageSet
from .layout import Part, Row, Size, image_set, require_entries, require_files, square

LAYOUT = (
    "cars_annos.mat and car_ims/, or cars_train/ and cars_test/ with cars_train_annos.mat and "
    "cars_test_annos_withlabels.mat in devkit/"
)
CLASSES = {"train": range(1, 99), "test": range(99, 197)}
CREDIT = "Cars-196 (Krause et al., 3DRR 2013), for research only"


def load_cars196(part: Part, size: Size, root: Path | None) -> ImageSet:
    """98 classes each; 8,054 images to train, 8,131 to test. Every test image is query and gallery."""
    if root is not None and (root / "cars_annos.mat").exists():
        root = require_entries(root, ["car_ims"], LAYOUT)
        files = _annotations(root / "cars_annos.mat", "relative_im_path", "")
    else:
        lists = ["devkit/cars_train_annos.mat", "devkit/cars_test_annos_withlabels.mat"]
        root = require_entries(root, ["cars_train", "cars_test", *lists], LAYOUT)
        files = _annotations(root / lists[0], "fname", "cars_train/")
        files += _annotations(root / lists[1], "fname", "cars_test/")
    rows = [Row(path, f"{number:03d}") for path, number in files if number in CLASSES[part]]
    require_files(root, rows, "its annotation", LAYOUT)
    return image_set(root, rows, size=square(size), credit=CREDIT, layout=LAYOUT)


def _annotations(file: Path, field: str, folder: str) -> list[tuple[str, int]]:
    """(path, class) of every image."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "no package 'scipy', which reads cars_annos.mat. Run `pip install scipy`."
        ) from error
    try:
        rows = loadmat(file, squeeze_me=True)["annotations"]
        return [(f"{folder}{row[field]}", int(row["class"])) for row in rows.reshape(-1)]
    except Exception as error:  # on other files, loadmat raises errors of many types
        raise ValueError(f"{file}: expected 'annotations' with the fields {field} and class, got {error}") from error
