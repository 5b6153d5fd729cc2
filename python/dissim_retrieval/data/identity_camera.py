"""Sets with a folder for each part and file names that begin with identity and camera, like Market-1501."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .layout import Row
from .listing import list_images, warn_skipped

# 0002_c1s1_000451_03.jpg, 0002_c002_00030600_0.jpg; Market-1501 has the identity -1
_NAME = re.compile(r"(-?\d+)_c(\d+)")


def names_identity_and_camera(path: str) -> bool:
    """Whether the file name begins with identity and camera."""
    return _NAME.match(path.rsplit("/", 1)[-1]) is not None


def rows_of_folders(root: Path, folders: Sequence[str], queries: str | None) -> list[Row]:
    """The images of these folders; those of the folder `queries` are the queries.

    Identity -1, detections that show no person well, is dropped. Files with another name are counted in one warning.
    """
    rows, unnamed = [], 0
    for folder in folders:
        for path in list_images(root / folder):
            match = _NAME.match(path.rsplit("/", 1)[-1])
            if match is None:
                unnamed += 1
            elif match[1] != "-1":
                rows.append(Row(f"{folder}/{path}", match[1], int(match[2]), folder == queries))
    if unnamed:
        warn_skipped(root, unnamed, "image", "whose name does not begin with identity and camera, like 0002_c1")
    return rows
