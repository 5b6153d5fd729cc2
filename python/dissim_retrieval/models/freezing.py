"""Freezing the first stages of a network, so that training does not change them."""

from __future__ import annotations

from typing import Literal

from torch import nn

from .backbone import Backbone


def stages(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that can be frozen, in the order of their definition: from the input on.

    These are its children that have parameters, with a list of blocks counted as its blocks: a ResNet gives its first
    convolution, its normalization and its residual blocks, a vision transformer its patch embedding, its layers and
    its last normalization. The projection of a `Backbone` is not a stage.
    """
    root = _unwrap(network.features if isinstance(network, Backbone) else network)
    return _parts(root) or [root]


def _parts(module: nn.Module) -> list[nn.Module]:
    parts = []
    for child in _children(module):
        if _is_list(child):
            for block in _children(child):
                parts += _children(block) if _is_list(block) else [block]
        elif not _is_list(module) and any(map(_is_list, _children(child))):
            parts += _parts(child)  # the encoder of a transformer, for example
        else:
            parts.append(child)
    return parts


def _is_list(module: nn.Module) -> bool:
    """Whether it is a Sequential or ModuleList of composed modules only: blocks, not single layers."""
    return isinstance(module, nn.Sequential | nn.ModuleList) and all(map(_children, _children(module)))


def freeze_stages(network: nn.Module, freeze: int | Literal["all"]) -> list[nn.Module]:
    """Exclude the first `freeze` stages from training, or all. Returns them; keep them in eval mode.

    Parameters outside the stages, like the position embedding of a vision transformer, are frozen with the first one.
    """
    parts = stages(network)
    if freeze not in ("all", *range(len(parts) + 1)):
        raise ValueError(
            f'freeze: expected "all" or a number from 0 to {len(parts)}, the stages of this backbone, got {freeze!r}.'
        )
    frozen = parts if freeze == "all" else parts[:freeze]
    if frozen:
        root = network.features if isinstance(network, Backbone) else network
        trained = {id(parameter) for part in parts[len(frozen) :] for parameter in part.parameters()}
        for parameter in root.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)
    return frozen


def _children(module: nn.Module) -> list[nn.Module]:
    """Its children that have parameters."""
    return [child for child in module.children() if any(True for _ in child.parameters())]


def _unwrap(module: nn.Module) -> nn.Module:
    """The module itself, or, if all of its parameters are those of one child, that child, and so on."""
    inner = _children(module)
    own = any(True for _ in module.parameters(recurse=False))
    return module if own or len(inner) != 1 else _unwrap(inner[0])
