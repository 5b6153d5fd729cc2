"""In-Shop Clothes Retrieval, a part of DeepFashion (Liu et al., CVPR 2016).

root/Eval/list_eval_partition.txt    the number of images, a header, then lines like
                                     "img/WOMEN/Dresses/id_00000002/02_1_front.jpg id_00000002 train"
root/Img/img/ or root/img/
"""

from __future__ import annotations

from pathlib import Path

from .image_set import ImageSet
from .layout import Part, Row, Size, image_set, require_entries, require_files, square

LAYOUT = "Eval/list_eval_partition.txt and the images in Img/img/ or img/"
LIST = "Eval/list_eval_partition.txt"
ROLES = {"train": ("train",), "test": ("query", "gallery")}
CREDIT = "In-Shop Clothes Retrieval, DeepFashion (Liu et al., CVPR 2016), for research only"


def load_inshop(part: Part, size: Size, root: Path | None) -> ImageSet:
    """3,997 items, 25,882 images to train; 3,985 items, 14,218 queries and 12,612 gallery images to test."""
    root = require_entries(root, [LIST], LAYOUT)
    folder = "Img/" if (root / "Img" / "img").is_dir() else ""
    require_entries(root, [f"{folder}img"], LAYOUT)
    lines = [_fields(line, root / LIST) for line in (root / LIST).read_text().splitlines()[2:] if line.strip()]
    rows = [Row(f"{folder}{path}", item, query=role == "query") for path, item, role in lines if role in ROLES[part]]
    require_files(root, rows, LIST, LAYOUT)
    return image_set(root, rows, size=square(size), credit=CREDIT, layout=LAYOUT, has_queries=part == "test")


def _fields(line: str, source: Path) -> list[str]:
    fields = line.rsplit(maxsplit=2)
    if len(fields) != 3 or fields[2] not in ("train", "query", "gallery"):
        raise ValueError(
            f"{source}: expected lines like 'img/WOMEN/Dresses/id_00000002/02_1_front.jpg id_00000002 train', "
            f"got {line!r}"
        )
    return fields
