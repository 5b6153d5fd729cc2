"""The images or stored features of a group, and their parts: training, validation, test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from dissim_retrieval.data import ImageSet, load_images
from dissim_retrieval.data.image_set import random_identities
from dissim_retrieval.embedding import embed_images
from dissim_retrieval.models import build_backbone
from safetensors.torch import load_file, save
from torch import Tensor

from .. import files
from .emoji7 import load_emoji7
from .plan import Amounts, Group, file_name
from .records import Records

#: Seed of the test half. The demo has the same, and no default was chosen on that half.
TEST_SEED = 0
#: Share of the other half that is for training; the rest is for validation.
TRAIN_SHARE = 0.8
#: The unseen cameras of each part, by the beginning of their names: a family of fonts, and a vendor of emoji.
UNSEEN = {"validation": ("DejaVuSerif", "OpenMoji"), "test": ("STIXGeneral", "Fluent")}


@dataclass(frozen=True, eq=False)
class Features:
    """Features of images by a frozen backbone: rows [N, D], labels and cameras int64 [N]."""

    rows: Tensor
    labels: Tensor
    cameras: Tensor
    camera_names: list[str]
    queries: Tensor | None = None
    """bool [N], as of an ImageSet."""

    def take(self, chosen: Tensor) -> Features:
        """The rows that a bool mask [N] selects."""
        queries = None if self.queries is None else self.queries[chosen]
        return Features(self.rows[chosen], self.labels[chosen], self.cameras[chosen], self.camera_names, queries)


Content = ImageSet | Features


@dataclass(frozen=True, eq=False)
class Part:
    """What methods are measured on: rows of `content` that are queries and rows that are the gallery."""

    name: str
    content: Content
    queries: Tensor
    gallery: Tensor


class Parts:
    """Training, validation and test parts of one group. No identity is in two parts of a split.

    The test identities are the same in every split. Each split divides the others anew into training and validation.
    So no training and no tuning of any split has seen a test identity.
    """

    def __init__(self, development: Content, test: Content, protocol: str, amounts: Amounts) -> None:
        self.protocol, self.amounts = protocol, amounts
        self._development, self._test = development, test

    def train(self, split: int) -> Content:
        """The training part; with an unseen camera, without the cameras of the other parts."""
        content = self._development.take(self._in_training(split))
        if self.protocol != "unseen camera":
            return content
        return content.take(~_of_cameras(content, *UNSEEN.values()))

    def validation(self, split: int) -> Part:
        return self._part(f"validation {split}", self._development.take(~self._in_training(split)))

    def test(self, records: Records) -> Part:
        """The test part. Raises RuntimeError until the tuning of every method is complete."""
        if untuned := records.untuned():
            raise RuntimeError(
                f"the test part is closed until every method is tuned; not tuned: {', '.join(untuned)}"
            )
        return self._part("test", self._test)

    def _in_training(self, split: int) -> Tensor:
        return random_identities(self._development.labels, TRAIN_SHARE, 1 + split)

    def _part(self, name: str, content: Content) -> Part:
        queries = gallery = torch.arange(len(content.labels))
        if content.queries is not None:
            queries, gallery = queries[content.queries], gallery[~content.queries]
        if self.protocol == "unseen camera":
            unseen = _of_cameras(content, UNSEEN[name.split()[0]])
            queries, gallery = queries[unseen], gallery[~_of_cameras(content, *UNSEEN.values())]
        draw = torch.Generator().manual_seed(TEST_SEED)
        drawn = torch.randperm(len(queries), generator=draw)[: self.amounts.queries].sort().values
        return Part(name, content, queries[drawn], gallery)


def load_parts(group: Group, amounts: Amounts, cache_folder: Path, root: Path | None = None) -> tuple[Parts, str]:
    """The parts of a group, and the fingerprint of its images.

    A set with an official split, in the folder `root`, has its training part for training and validation.
    """
    sets = [_images(group.data, group.size, cache_folder)] if root is None else _official(group, root)
    if amounts.identities is not None:
        sets = [images.take(images.labels < amounts.identities) for images in sets]
    contents = [_features(images, group.backbone, cache_folder) if group.frozen else images for images in sets]
    development, test = halves(contents[0]) if root is None else contents
    return Parts(development, test, group.protocol, amounts), "-".join(images.fingerprint for images in sets)


def halves(content: Content) -> tuple[Content, Content]:
    """(development, test): half of the identities each."""
    development = random_identities(content.labels, 0.5, TEST_SEED)
    return content.take(development), content.take(~development)


def _official(group: Group, root: Path) -> list[ImageSet]:
    return [load_images(f"{group.data}-{part}", size=group.size, root=root) for part in ("train", "test")]


def _features(images: ImageSet, backbone: str, cache_folder: Path) -> Features:
    path = cache_folder / "features" / f"{file_name(backbone)}-{images.fingerprint}.safetensors"
    if not path.exists():
        network = build_backbone(backbone, None)
        network.check_size(images.size)
        rows = embed_images(network, images)
        files.replace(path, save({"rows": rows}))
    return Features(load_file(path)["rows"], images.labels, images.cameras, images.camera_names, images.queries)


@cache
def _images(name: str, size: int, cache_folder: Path) -> ImageSet:
    return load_emoji7(size, cache_folder / "emoji7") if name == "emoji7" else load_images(name, size=size)


def _of_cameras(content: Content, *beginnings: tuple[str, ...]) -> Tensor:
    """bool [N]: the rows of cameras whose names begin with one of these."""
    every = tuple(chain.from_iterable(beginnings))
    matching = [name.startswith(every) for name in content.camera_names]
    return torch.tensor(matching)[content.cameras]
