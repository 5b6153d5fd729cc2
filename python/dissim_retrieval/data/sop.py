"""Stanford Online Products (Oh Song et al., CVPR 2016).

root/Ebay_train.txt, root/Ebay_test.txt    a header, then lines like "1 1 1 bicycle_final/111085122871_0.JPG":
                                           image, class, super class, file
root/bicycle_final/, ...
"""

from __future__ import annotations

from pathlib import Path

from .image_set import ImageSet
from .layout import Part, Row, Size, image_set, require_entries, require_files, square

LAYOUT = "Ebay_train.txt and Ebay_test.txt with the folders that they list, like bicycle_final/"
CREDIT = "Stanford Online Products (Oh Song et al., CVPR 2016), for research only"


def load_sop(part: Part, size: Size, root: Path | None) -> ImageSet:
    """11,318 products, 59,551 images to train; 11,316, 60,502 to test. Every test image is query and gallery."""
    name = f"Ebay_{part}.txt"
    root = require_entries(root, [name], LAYOUT)
    lines = (root / name).read_text().splitlines()[1:]
    rows = [_row(line, root / name) for line in lines if line.strip()]
    require_files(root, rows, name, LAYOUT)
    return image_set(root, rows, size=square(size), credit=CREDIT, layout=LAYOUT)


def _row(line: str, source: Path) -> Row:
    fields = line.split(maxsplit=3)
    if len(fields) != 4 or not fields[1].isdecimal():
        raise ValueError(f"{source}: expected lines like '1 1 1 bicycle_final/111085122871_0.JPG', got {line!r}")
    return Row(fields[3].strip(), f"{int(fields[1]):05d}")
