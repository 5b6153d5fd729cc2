"""Random changes of training images: flip, crop, color and erasing, by kornia, for a whole batch at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import TrainConfig

if TYPE_CHECKING:
    from kornia.augmentation import AugmentationBase2D

#: kornia's parameters that hold for the batch, not for each of its images.
OF_BATCH = ("order", "forward_input_shape")


class Augmentation:
    """The changes that a TrainConfig asks for, applied to images [B, 3, H, W] in [0, 1]."""

    def __init__(self, config: TrainConfig, size: tuple[int, int]) -> None:
        import kornia.augmentation as augmentations  # here, because it takes a third of a second to import

        self.steps: list[AugmentationBase2D] = []
        if config.flip:
            self.steps.append(augmentations.RandomHorizontalFlip(p=config.flip))
        if config.crop < 1:
            height, width = size
            area, ratio = (config.crop, 1.0), (3 / 4 * width / height, 4 / 3 * width / height)
            self.steps.append(augmentations.RandomResizedCrop(size, area, ratio, cropping_mode="resample"))
        if config.color:
            self.steps.append(augmentations.ColorJitter(config.color, config.color, config.color, p=1.0))
        if config.erase:
            self.steps.append(augmentations.RandomErasing(scale=(0.02, 0.33), ratio=(0.3, 3.3), p=config.erase))

    def __call__(self, images: Tensor, seed: int, rows: slice, batch: int) -> Tensor:
        """Change `images`, which are `rows` of a batch of `batch` images.

        What happens to an image depends on the seed and its row only, not on how many processes share the batch.
        torch's generator is seeded.
        """
        torch.manual_seed(seed)
        for step in self.steps:
            drawn = step.forward_parameters((batch, *images.shape[1:]))
            parameters = {k: v if k in OF_BATCH else v[rows].to(images.device) for k, v in drawn.items()}
            images = step(images, params=parameters)
        return images
