"""Market-1501 (Zheng et al., ICCV 2015) and DukeMTMC-reID (Zheng et al., ICCV 2017), which has the same layout.

    root/bounding_box_train/0002_c1s1_000451_03.jpg    DukeMTMC-reID: 0001_c2_f0046182.jpg
    root/query/
    root/bounding_box_test/

Identity -1 (junk detections) is dropped. Identity 0000 (distractors) is kept; it occurs in the gallery only.
"""

from __future__ import annotations

from pathlib import Path

from .identity_camera import rows_of_folders
from .image_set import ImageSet
from .layout import Part, Size, image_set, require_entries, upright

LAYOUT = "bounding_box_train/, query/ and bounding_box_test/ with files like 0002_c1s1_000451_03.jpg"
FOLDERS = {"train": ["bounding_box_train"], "test": ["query", "bounding_box_test"]}


def load_market1501(part: Part, size: Size, root: Path | None) -> ImageSet:
    """751 people to train; 750 people, 3,368 queries and 15,913 other images to test."""
    return _load("Market-1501 (Zheng et al., ICCV 2015), for research only", part, size, root)


def load_dukemtmc(part: Part, size: Size, root: Path | None) -> ImageSet:
    """702 people to train; 2,228 queries and 17,661 other images to test."""
    return _load("DukeMTMC-reID (Zheng et al., ICCV 2017; withdrawn by its authors)", part, size, root)


def _load(credit: str, part: Part, size: Size, root: Path | None) -> ImageSet:
    root = require_entries(root, FOLDERS[part], LAYOUT)
    rows = rows_of_folders(root, FOLDERS[part], "query")
    return image_set(root, rows, size=upright(size), credit=credit, layout=LAYOUT, has_queries=part == "test")
