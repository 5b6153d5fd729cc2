"""Embeddings on disk: a NumPy .npz that any tool can write or read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .atomic import atomic_write
from .data import ImageSet


def write_embeddings(path: str | Path, embeddings: Tensor, images: ImageSet) -> None:
    """Write arrays embeddings [B, D], labels and cameras int64 [B], label_names and camera_names, atomically."""
    with atomic_write(path) as file:
        np.savez(
            file,
            embeddings=embeddings.numpy(),
            labels=images.labels.numpy(),
            cameras=images.cameras.numpy(),
            label_names=np.array(images.label_names, dtype=str),
            camera_names=np.array(images.camera_names, dtype=str),
        )


def read_embeddings(path: str | Path) -> Tensor:
    """The array "embeddings" [B, D] of an .npz file. Other arrays are optional. No code from the file is run."""
    expected = f"path: expected an .npz file with an array 'embeddings' [B, D] of floats, got {path}"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            embeddings = arrays["embeddings"]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{expected}. Write one with `dissim embed` or numpy.savez.") from error
    if embeddings.ndim != 2 or embeddings.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{expected} with {embeddings.dtype} {list(embeddings.shape)}.")
    return torch.from_numpy(embeddings)
