"""Split: the training, validation and test part of an image set, without an identity in two of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..logs import get_logger
from .image_set import ImageSet

logger = get_logger(__name__)

#: Smaller sets hold no identities out for validation.
MIN_IDENTITIES = 20


@dataclass(frozen=True)
class Split:
    """The parts of an image set; None for a part that it does not have."""

    train: ImageSet | None
    validation: ImageSet | None
    test: ImageSet | None


def hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """(train, validation): `fraction` of the identities, chosen at random by the seed, are for validation.

    Only identities with two or more images are chosen, since others cannot be retrieved. validation is None if there
    are fewer than MIN_IDENTITIES identities, or none to choose.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"val_fraction: expected a number from 0 to below 1, got {fraction}")
    counts = images.labels.bincount()
    several = torch.nonzero(counts > 1)[:, 0]
    present = int((counts > 0).sum())
    number = min(round(fraction * present), len(several)) if present >= MIN_IDENTITIES else 0
    logger.info("%s: %d identities to train, %d for validation", images.name, present - number, number)
    if number == 0:
        return images, None
    chosen = several[torch.randperm(len(several), generator=torch.Generator().manual_seed(seed))[:number]]
    out = torch.isin(images.labels, chosen)
    return images.take(~out), images.take(out)
