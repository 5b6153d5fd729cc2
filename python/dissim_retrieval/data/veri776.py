"""VeRi-776 (Liu et al., ECCV 2016), vehicles.

root/image_train/0001_c001_00016450_0.jpg
root/image_query/0002_c002_00030600_0.jpg
root/image_test/
"""

from __future__ import annotations

from pathlib import Path

from .identity_camera import rows_of_folders
from .image_set import ImageSet
from .layout import Part, Size, image_set, require_entries, square

LAYOUT = "image_train/, image_query/ and image_test/ with files like 0002_c002_00030600_0.jpg"
FOLDERS = {"train": ["image_train"], "test": ["image_query", "image_test"]}
CREDIT = "VeRi-776 (Liu et al., ECCV 2016), for research only"


def load_veri776(part: Part, size: Size, root: Path | None) -> ImageSet:
    """576 vehicles to train; 200 vehicles, 1,678 queries and 11,579 gallery images to test. Square by default."""
    root = require_entries(root, FOLDERS[part], LAYOUT)
    rows = rows_of_folders(root, FOLDERS[part], "image_query")
    return image_set(root, rows, size=square(size), credit=CREDIT, layout=LAYOUT, has_queries=part == "test")
