"""MSMT17 (Wei et al., CVPR 2018), version 1 or 2, with its lists.

    root/list_train.txt    lines like "0000/0000_000_01_0303morning_0015_0.jpg 0": file, number of the person
    root/list_val.txt, list_query.txt, list_gallery.txt
    root/train/, test/                        version 1
    root/mask_train_v2/, mask_test_v2/        version 2

The third field of a file name is the camera. The numbers of the people begin at 0 in both parts, for different
people; the names of identities say the part. list_val belongs to the training part, as in the paper (1,041 people).
"""

from __future__ import annotations

from pathlib import Path

from .image_set import ImageSet
from .layout import Part, Row, Size, image_set, require_entries, require_files, upright

LAYOUT = (
    "train/ and test/ (version 2: mask_train_v2/ and mask_test_v2/) with list_train.txt, list_val.txt, "
    "list_query.txt and list_gallery.txt"
)
FOLDERS = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
LISTS = {"train": ["list_train.txt", "list_val.txt"], "test": ["list_query.txt", "list_gallery.txt"]}
CREDIT = "MSMT17 (Wei et al., CVPR 2018), for research only"


def load_msmt17(part: Part, size: Size, root: Path | None) -> ImageSet:
    """1,041 people, 32,621 images to train; 3,060 people, 11,659 queries and 82,161 other images to test."""
    root = require_entries(root, LISTS[part], LAYOUT)
    version_1, version_2 = FOLDERS[part]
    folder = version_2 if (root / version_2).is_dir() else version_1
    require_entries(root, [folder], LAYOUT)
    rows = [
        _row(line, part, folder, query=name == "list_query.txt", source=root / name)
        for name in LISTS[part]
        for line in (root / name).read_text().splitlines()
        if line.strip()
    ]
    require_files(root, rows, " and ".join(LISTS[part]), LAYOUT)
    return image_set(root, rows, size=upright(size), credit=CREDIT, layout=LAYOUT, has_queries=part == "test")


def _row(line: str, part: Part, folder: str, query: bool, source: Path) -> Row:
    try:
        path, person = line.rsplit(maxsplit=1)
        camera = int(path.rsplit("/", 1)[-1].split("_")[2])
        return Row(f"{folder}/{path}", f"{part}/{int(person):04d}", camera, query)
    except (ValueError, IndexError):
        raise ValueError(
            f"{source}: expected lines like '0000/0000_000_01_0303morning_0015_0.jpg 0', got {line!r}"
        ) from None
