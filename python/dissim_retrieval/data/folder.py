"""Image sets on disk: one folder per identity, and Market-1501's layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .image_set import ImageSet

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
# split -> its folders, queries first if they have a folder
MARKET_FOLDERS = {"train": ["bounding_box_train"], "test": ["query", "bounding_box_test"]}


def load_folder(size: int, root: Path | None) -> ImageSet:
    """root/<label>/<image>: identity = folder name, one camera; every image resized to size x size."""
    root = _existing(root)
    files = [path for path in sorted(root.glob("*/*")) if path.suffix.lower() in ENDINGS]
    if not files:
        raise ValueError(f"root: expected images as {root}/<label>/<image>{sorted(ENDINGS)}, found none")
    names = sorted({path.parent.name for path in files})
    labels = [names.index(path.parent.name) for path in files]
    return ImageSet(
        _read(files, (size, size)), torch.tensor(labels), torch.zeros(len(files), dtype=torch.int64),
        names, ["all"], f"Images of {root.name}",
    )  # fmt: skip


def load_market1501(size: int, root: Path | None, split: str) -> ImageSet:
    """Market-1501's "train", or "test" with queries and gallery in one set; `size` high and size / 2 wide.

    Identity -1 (junk detections) is dropped. Identity 0 (distractors) is kept; it occurs in the gallery only. Labels
    are the identities themselves. Layout and rule: Zheng et al., ICCV 2015; files like 0002_c1s1_000451_03.jpg.
    """
    folders = [_existing(_existing(root) / name) for name in MARKET_FOLDERS[split]]
    found = [
        (re.match(r"([-\d]+)_c(\d)", path.name), path) for folder in folders for path in sorted(folder.glob("*.jpg"))
    ]
    rows = [(int(m[1]), int(m[2]), path) for m, path in found if m is not None and int(m[1]) != -1]
    if not rows:
        raise ValueError(f"root: expected files like 0002_c1s1_000451_03.jpg in {folders[-1]}, found none")
    people, cameras, files = zip(*rows, strict=True)
    return ImageSet(
        _read(files, (size, max(1, size // 2))), torch.tensor(people), torch.tensor(cameras) - 1,
        [f"{person:04d}" for person in range(max(people) + 1)], [f"c{c}" for c in range(1, max(cameras) + 1)],
        "Market-1501 (Zheng et al., ICCV 2015), for research only",
        torch.tensor([path.parent == folders[0] for path in files]) if len(folders) > 1 else None,
    )  # fmt: skip


def _existing(folder: Path | None) -> Path:
    if folder is None or not folder.is_dir():
        raise NotADirectoryError(f"root: expected the folder of the image set, got {folder}")
    return folder


def _read(files: Sequence[Path], shape: tuple[int, int]) -> torch.Tensor:
    """The files as uint8 [B, 3, *shape], resized without keeping the aspect ratio."""
    images = np.empty((len(files), 3, *shape), np.uint8)
    for i, path in enumerate(tqdm(files, desc="Reading images")):
        with Image.open(path) as image:
            resized = image.convert("RGB").resize(shape[::-1], Image.Resampling.BICUBIC)
        images[i] = np.asarray(resized).transpose(2, 0, 1)
    return torch.from_numpy(images)
