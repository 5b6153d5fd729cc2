"""Split: the training, validation and test part of an image set, without an identity in two of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..logs import get_logger
from .image_set import ImageSet

logger = get_logger(__name__)

#: With fewer identities of two or more images, a set holds none out for validation.
MIN_IDENTITIES = 20


@dataclass(frozen=True)
class Split:
    """The parts of an image set; None for a part that it does not have."""

    train: ImageSet | None
    validation: ImageSet | None
    test: ImageSet | None


def hold_out(
    images: ImageSet, fraction: float | None, seed: int, *, default: float = 0.0
) -> tuple[ImageSet, ImageSet | None]:
    """(train, validation): of the identities with two or more images, `fraction` is for validation, by the seed.

    The rest of them and the identities with one image, which cannot be retrieved, are for training. validation is
    None if fewer than MIN_IDENTITIES identities have two or more images; if `fraction` is given, that is an error.
    """
    if fraction is not None and not 0 <= fraction < 1:
        raise ValueError(f"val_fraction: expected a number from 0 to below 1, got {fraction}")
    counts = images.labels.bincount()
    several = torch.nonzero(counts > 1)[:, 0]
    enough = len(several) >= MIN_IDENTITIES
    if fraction and not enough:
        raise ValueError(
            f"val_fraction: expected {MIN_IDENTITIES} or more identities with two images, to hold out {fraction:g} of"
            f" them, got {len(several)}. Add images, or omit val_fraction (on the command line --val-fraction)."
        )
    share = default if fraction is None else fraction
    number = round(share * len(several)) if enough else 0
    present = int((counts > 0).sum())
    held_out = f"{number} for validation"
    if share and not enough:
        held_out = f"none held out: fewer than {MIN_IDENTITIES} identities with two images"
    logger.info("%s: %d identities to train, %s", images.name, present - number, held_out)
    if number == 0:
        return images, None
    chosen = several[torch.randperm(len(several), generator=torch.Generator().manual_seed(seed))[:number]]
    out = torch.isin(images.labels, chosen)
    return images.take(~out), images.take(out)
