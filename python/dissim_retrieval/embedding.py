"""Embeddings of images by a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .data import ImageSet


@torch.no_grad()
def embed_images(backbone: nn.Module, images: ImageSet, *, batch: int = 256, progress: bool = True) -> Tensor:
    """The backbone's embeddings of all images, float32 [B, D] on the CPU, `batch` images at a time.

    The backbone runs in eval mode on the device of its parameters. Its mode is restored afterwards.
    """
    parameter = next(backbone.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    plan = torch.arange(len(images)).split(batch)
    was_training = backbone.training
    backbone.eval()
    try:
        parts = [
            backbone(to_float_nhwc(part, device)).float().cpu()
            for part in tqdm(images.batches(plan), "Embedding", len(plan), disable=not progress)
        ]
    finally:
        backbone.train(was_training)
    return torch.cat(parts)


def to_float_nhwc(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [0, 1], channels last: convolutions are then 1.6 times as fast on CPUs."""
    return images.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)
