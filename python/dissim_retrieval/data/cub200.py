"""CUB-200-2011 (Wah et al., 2011), birds: classes 1 to 100 to train, 101 to 200 to test.

    root/images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg

This is the split of metric learning. train_test_split.txt, which splits each class, is not used.
"""

from __future__ import annotations

from pathlib import Path

from .decode import printable
from .image_set import ImageSet
from .layout import Part, Row, Size, image_set, require_entries, square
from .listing import list_images, warn_skipped

LAYOUT = "images/ with a folder for each class, like images/001.Black_footed_Albatross/"
CLASSES = {"train": range(1, 101), "test": range(101, 201)}
CREDIT = "CUB-200-2011 (Wah et al., 2011), for research only"


def load_cub200(part: Part, size: Size, root: Path | None) -> ImageSet:
    """100 classes each; 5,864 images to train, 5,924 to test. Every test image is query and gallery."""
    root = require_entries(root, ["images"], LAYOUT)
    rows, unnumbered = [], 0
    for path in list_images(root / "images"):
        number = path.split(".", 1)[0]
        if "/" not in path or not number.isdecimal():
            unnumbered += 1
        elif int(number) in CLASSES[part]:
            rows.append(Row(f"images/{path}", printable(path.split("/", 1)[0])))
    if unnumbered:
        warn_skipped(root, unnumbered, "image", "outside of the folders of classes")
    return image_set(root, rows, size=square(size), credit=CREDIT, layout=LAYOUT)
