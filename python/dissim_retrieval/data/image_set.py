"""ImageSet: labeled images in memory or on disk, the type of every image set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..arrays import as_tensor
from ..logs import get_logger
from .decode import printable
from .image_files import ImageFiles
from .workers import default_workers, map_rows

logger = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset):
    """Images with the identity each shows and the camera (vendor, font, viewpoint) that took it.

    images: uint8 [B, 3, H, W], or ImageFiles, which are decoded when they are read;
    labels, cameras: int64 [B], indices into label_names and camera_names; lists and arrays are converted;
    credit: the license line to show with the images;
    queries: bool [B], the images that are queries, the others being the gallery; None: every image is both;
    ids: a different text per image. Empty: the path of a file below its root, the row number of a tensor;
    name: what `load_images` calls the set.

    A torch data set: `images[i]` is uint8 [3, H, W]. A field that does not fit raises TypeError or ValueError.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    cameras: Tensor
    label_names: list[str]
    camera_names: list[str]
    credit: str
    queries: Tensor | None = None
    ids: list[str] = field(default_factory=list)
    name: str = "own images"

    def __post_init__(self) -> None:
        images = self.images if isinstance(self.images, ImageFiles) else _as_pixels(self.images)
        checked = {
            "images": images,
            "labels": _as_indices("labels", self.labels, len(images), "label_names", self.label_names),
            "cameras": _as_indices("cameras", self.cameras, len(images), "camera_names", self.camera_names),
            "queries": None if self.queries is None else _as_mask(self.queries, len(images)),
            "ids": _as_ids(self.ids, images),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # frozen from here on

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Tensor:
        return self.images[int(row)]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images in pixels."""
        return tuple(self.images.shape[2:])  # type: ignore[return-value]

    def read(self, rows: Tensor | Sequence[int]) -> Tensor:
        """The images of these rows (int64, or a bool mask [B]), uint8 [len(rows), 3, H, W].

        Files are decoded in this process.
        """
        return self.images[self._numbers("rows", rows)]

    def batches(self, plan: Sequence[Tensor], *, workers: int | None = None) -> Iterator[Tensor]:
        """`read(rows)` for each rows (int64) of the plan, in order.

        Files are decoded ahead by `workers` spawned processes; None: one per core, at most 4, and none for fewer than
        about 1,000 images, because their start takes seconds. At most 3 batches per process are in memory. An image
        that cannot be decoded raises one error that names it; `without_damaged` finds all of them.
        """
        if workers is not None and workers < 0:
            raise ValueError(f"workers: expected 0 or more processes, or None, got {workers}.")
        if not isinstance(self.images, ImageFiles):
            return map(self.read, plan)
        return map_rows(self.images.__getitem__, plan, default_workers(plan) if workers is None else workers)

    def without_damaged(self) -> ImageSet:
        """The set without the files that cannot be decoded, which are counted in one warning.

        Decodes every image once: about as long as embedding them.
        """
        if not isinstance(self.images, ImageFiles):
            return self
        plan = torch.arange(len(self)).split(64)
        reports = map_rows(self.images.damage, plan, default_workers(plan))
        damage = [text for part in reports for text in part]
        bad = [text for text in damage if text]
        if bad:
            shown = " ".join(bad[:3]) + (" ..." if len(bad) > 3 else "")
            logger.warning("%s: skipped %d of %d images: %s", self.name, len(bad), len(self), shown)
        return self.take(torch.tensor([not text for text in damage], dtype=torch.bool))

    def _numbers(self, name: str, rows: Tensor | Sequence[int]) -> Tensor:
        """int64, from 0, of row numbers or a bool mask."""
        got = type(rows).__name__
        with suppress(TypeError, ValueError):  # of texts, and of lists of different lengths
            given = as_tensor(rows)
            got = f"{given.dtype} {list(given.shape)}"
            if given.dim() == 1 and given.dtype == torch.bool and len(given) == len(self):
                return given.nonzero()[:, 0]
            if given.dim() == 1 and not len(given):
                return given.long()
            if given.dim() == 1 and _is_integer(given):
                lowest, highest = int(given.min()), int(given.max())
                if -len(self) <= lowest and highest < len(self):
                    return given.long() % len(self)
                got += f" from {lowest} to {highest}"
        raise IndexError(
            f"{name}: expected row numbers below {len(self)}, or a bool for each of the {len(self)} images, got"
            f" {got}. Pass int64 [n] or bool [B]."
        )

    def take(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The images at `indices` (int64, or a bool mask [B]); label numbers, names and ids stay as they are."""
        rows = self._numbers("indices", indices)
        numbers = rows.tolist()
        return replace(
            self,
            images=self.images.take(numbers) if isinstance(self.images, ImageFiles) else self.images[rows],
            labels=self.labels[rows],
            cameras=self.cameras[rows],
            queries=None if self.queries is None else self.queries[rows],
            ids=[self.ids[row] for row in numbers],
        )

    def split_labels(self, train_fraction: float = 0.5, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """(train, test) with no identity in both. train has round(train_fraction * identities), chosen at random."""
        if not 0 < train_fraction < 1:
            raise ValueError(f"train_fraction: expected a number between 0 and 1, got {train_fraction}")
        in_train = random_identities(self.labels, train_fraction, seed)
        return self.take(in_train), self.take(~in_train)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of ids, labels, size and content. A copied or moved folder has the same.

        Reads the beginning and the end of every file (`ImageFiles.digests`), or all of a tensor.
        """
        return self.fingerprint_without([])

    def fingerprint_without(self, ids: Sequence[str]) -> str:
        """The fingerprint without the content of these files: it is the same after they have been repaired."""
        digest = hashlib.blake2b(repr((self.size, self.ids)).encode(), digest_size=16)
        digest.update(self.labels.numpy().tobytes())
        if isinstance(self.images, ImageFiles):
            for name, content in zip(self.ids, self.images.digests(), strict=True):
                if name not in ids:
                    digest.update(content)
        else:
            digest.update(self.images.cpu().numpy().tobytes())
        return digest.hexdigest()

    def provenance(self) -> dict:
        """What identifies the set, for JSON: name, root, number of images and identities, size, fingerprint."""
        return {
            "name": self.name,
            "root": printable(os.path.abspath(self.images.root)) if isinstance(self.images, ImageFiles) else None,
            "images": len(self),
            "identities": len(self.labels.unique()),
            "size": list(self.size),
            "fingerprint": self.fingerprint,
        }


def random_identities(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """bool [B]: the rows of round(fraction * identities) of the identities, chosen at random by the seed."""
    present = labels.unique()
    order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
    return torch.isin(labels, present[order[: round(fraction * len(present))]])


def rows_by_label(labels: Tensor) -> list[Tensor]:
    """The rows of each label, int64; labels [B] in ascending order, rows too."""
    if not len(labels):
        return []
    return list(labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist()))


def _as_pixels(images: Tensor) -> Tensor:
    images = as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise TypeError(
            f"images: expected uint8 [B, 3, H, W] with values 0 to 255, got {images.dtype} {list(images.shape)}."
        )
    return images


def _as_indices(field: str, values: Tensor, count: int, names_field: str, names: list[str]) -> Tensor:
    values = as_tensor(values)
    if not _is_integer(values):
        raise TypeError(f"{field}: expected integers, got {values.dtype}.")
    if values.shape != (count,):
        raise ValueError(f"{field}: expected one for each of {count} images, got shape {list(values.shape)}.")
    values = values.to(torch.int64)
    if count and not 0 <= values.min() <= values.max() < len(names):
        raise ValueError(
            f"{field}: expected indices into {names_field}, 0 to {len(names) - 1}, got values from {values.min()} to "
            f"{values.max()}."
        )
    return values


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _as_mask(queries: Tensor, count: int) -> Tensor:
    queries = as_tensor(queries)
    if queries.dtype != torch.bool or queries.shape != (count,):
        raise ValueError(
            f"queries: expected a bool for each of {count} images, got {queries.dtype} {list(queries.shape)}."
        )
    return queries


def _as_ids(ids: Sequence[str], images: Tensor | ImageFiles) -> list[str]:
    if not ids:
        ids = images.ids() if isinstance(images, ImageFiles) else [str(row) for row in range(len(images))]
    if len(ids) != len(images) or len(set(ids)) != len(ids):
        raise ValueError(
            f"ids: expected {len(images)} different texts, one per image, got {len(ids)}, {len(set(ids))} of them "
            "different."
        )
    return list(ids)


def stack_pictures(drawn: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, labels and cameras of an ImageSet: camera by camera, the named pictures that it has."""
    rows = [
        (pictures[name], label, camera)
        for camera, pictures in enumerate(drawn)
        for label, name in enumerate(names)
        if name in pictures
    ]
    images, labels, cameras = zip(*rows, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), torch.tensor(cameras)


def drop_ambiguous(drawn: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """The names, sorted, without those whose picture equals that of an earlier kept one; drawn: a dict per camera."""
    seen: list[set[bytes]] = [set() for _ in drawn]
    kept = []
    for name in sorted(set().union(*drawn)):
        pictures = [camera[name].tobytes() if name in camera else None for camera in drawn]
        if not any(picture in before for picture, before in zip(pictures, seen, strict=True)):
            kept.append(name)
            for picture, before in zip(pictures, seen, strict=True):
                if picture is not None:
                    before.add(picture)
    return kept
