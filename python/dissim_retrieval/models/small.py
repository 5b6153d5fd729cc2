"""A small convolutional network for tests and quick trials."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from .backbone import Preprocessing, pooled


def small(pretrained: bool) -> tuple[nn.Module, int, Preprocessing]:
    """Four 3 x 3 convolutions of 32 to 256 channels, each halving the image: 0.4 M weights, never pretrained."""
    widths = [3, 32, 64, 128, 256]
    blocks = [
        nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        for before, after in pairwise(widths)
    ]
    return pooled(nn.Sequential(*blocks)), widths[-1], Preprocessing()
