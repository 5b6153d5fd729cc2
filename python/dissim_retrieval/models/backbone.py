"""Backbone: normalization, a network that gives features, and a linear layer to embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Preprocessing:
    """What the pretrained weights of a network expect of its images."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of each channel; the backbone subtracts it and divides by std. Pixels are in [0, 1] before."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    size: tuple[int, int] | None = None
    """Height and width in pixels that the weights were trained with; None if they have no preference."""


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))


class Backbone(nn.Module):
    """``projection(features(normalize(images)))``: images [B, 3, H, W] in [0, 1] to embeddings [B, dim].

    Args:
        features: a network from normalized images to features [B, width].
        width: number of features.
        dim: width of the embeddings; with None there is no projection, and the features are the embeddings.
    """

    def __init__(self, features: nn.Module, width: int, dim: int | None, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.normalize = Normalize(preprocessing.mean, preprocessing.std)
        self.features = features
        self.projection = nn.Identity() if dim is None else nn.Linear(width, dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.features(self.normalize(images)))

    @torch.no_grad()
    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ValueError if the network cannot take images of this height and width. Embeds one image."""
        was_training = self.training
        try:
            self.eval()(next(self.parameters()).new_zeros(1, 3, *size))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise ValueError(
                f"images: expected a size that this backbone can take, got {size[0]} x {size[1]} pixels"
                f" ({reason}). {self._other_size()}"
            ) from error
        finally:
            self.train(was_training)

    def _other_size(self) -> str:
        if self.preprocessing.size is None:
            return "Load larger images (dissim train: --size)."
        height, width = self.preprocessing.size
        option = height if height == width else f"{height}x{width}"
        return f"Load them at {height} x {width}, the size of its training (dissim train: --size {option})."


class Normalize(nn.Module):
    """(image - mean) / std by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def pooled(features: nn.Module) -> nn.Module:
    """`features`, followed by the mean over height and width: [B, C, H, W] -> [B, C]."""
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
