"""ImageSet: labeled images in memory, the type of every image set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images with the identity each shows and the camera (vendor, font, viewpoint) that took it.

    images uint8 [B, 3, H, W]; labels, cameras int64 [B], indices into label_names and camera_names;
    credit: the license line to show with the images;
    queries: bool [B], the images that are queries, the others being the gallery; None: every image is both.
    """

    images: Tensor
    labels: Tensor
    cameras: Tensor
    label_names: list[str]
    camera_names: list[str]
    credit: str
    queries: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (int64, or a bool mask [B]); label numbers and names stay as they are."""
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            cameras=self.cameras[indices],
            queries=None if self.queries is None else self.queries[indices],
        )

    def split_labels(self, train_fraction: float = 0.5, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """(train, test) with no identity in both. train has round(train_fraction * identities), chosen at random."""
        if not 0 < train_fraction < 1:
            raise ValueError(f"train_fraction: expected a number between 0 and 1, got {train_fraction}")
        present = self.labels.unique()
        order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
        train_ids = present[order[: round(train_fraction * len(present))]]
        in_train = torch.isin(self.labels, train_ids)
        return self.take(in_train), self.take(~in_train)


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
