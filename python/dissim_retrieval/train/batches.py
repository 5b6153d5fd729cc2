"""IdentityBatches: the image rows of every training step, P identities with K images each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from ..data.image_set import rows_by_label
from ..logs import get_logger

logger = get_logger(__name__)


def count_identities(labels: Tensor) -> int:
    """How many identities there are. Fewer than two cannot be trained on."""
    present = len(labels.unique())
    if present < 2:
        raise ValueError(
            f"images: expected at least 2 identities to train on, got {present} with {len(labels)} images."
            " Sort the images by identity, or choose another split."
        )
    return present


class IdentityBatches(Sequence[Tensor]):
    """Batch `step` has `views` images of each of `identities` identities: int64 rows [identities * views].

    The images of an identity are neighbors. Identities are taken from a random order of all; after the last ones
    that fill a batch, a new order begins. Images are drawn without repetition, as far as an identity has enough; if
    none has two, a logged warning says so.
    Each batch depends on (seed, step) only. Any `DataLoader` takes an object of this class as `batch_sampler`.

    Args:
        labels: int64 [B], the identity of each image.
        identities: lowered to the number of identities that there are, with a logged warning.
        steps: number of batches.
    """

    def __init__(self, labels: Tensor, *, identities: int, views: int, steps: int, seed: int = 0) -> None:
        for name, value, smallest in (("identities", identities, 1), ("views", views, 1), ("seed", seed, 0)):
            if value < smallest:
                raise ValueError(f"{name}: expected at least {smallest}, got {value}.")
        present = count_identities(labels)
        self._rows = [rows.numpy() for rows in rows_by_label(labels)]
        if identities > present:
            logger.warning("identities: a batch has all %d identities: there are fewer than %d (--identities)",
                           present, identities)  # fmt: skip
        if views > 1 and max(map(len, self._rows)) == 1:
            logger.warning("images: none of the %d identities has two images, so their views repeat the same image.",
                           present)  # fmt: skip
        self.num_identities = present
        self.identities, self.views, self.seed = min(identities, present), views, seed
        self._steps = range(steps)
        self._part = slice(None)

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> IdentityBatches: ...
    def __getitem__(self, index: int | slice) -> Tensor | IdentityBatches:
        if isinstance(index, int):
            return self._batch(self._steps[index])
        part = copy.copy(self)
        part._steps = self._steps[index]
        return part

    def part(self, rows: slice) -> IdentityBatches:
        """The same batches, but only these rows of each, for one of several processes."""
        part = copy.copy(self)
        part._part = rows
        return part

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._batch, self._steps)

    def _batch(self, step: int) -> Tensor:
        epoch, place = divmod(step, len(self._rows) // self.identities)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self._rows))
        chosen = order[place * self.identities : (place + 1) * self.identities]
        draw = np.random.default_rng([self.seed, 1, step])
        views = [draw.choice(rows := self._rows[i], self.views, replace=len(rows) < self.views) for i in chosen]
        return torch.from_numpy(np.concatenate(views)[self._part])
