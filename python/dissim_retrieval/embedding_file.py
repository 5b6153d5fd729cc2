"""Embeddings on disk: a NumPy .npz that any tool can write or read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .atomic import atomic_write
from .data import ImageSet


@dataclass(frozen=True)
class EmbeddingFile:
    """The content of an embeddings file. All but the embeddings may be absent."""

    embeddings: Tensor
    """[B, D] of a floating dtype."""
    ids: list[str] | None = None
    """Of the images, as `ImageSet.ids`."""
    labels: Tensor | None = None
    """int64 [B]."""
    cameras: Tensor | None = None
    """int64 [B]."""
    provenance: dict = field(default_factory=dict)
    """Of the run that made them, and of the images: see `dissim_retrieval.provenance`."""


def write_embeddings(
    path: str | Path, embeddings: Tensor, images: ImageSet, *, provenance: Mapping | None = None
) -> None:
    """Write the embeddings of `images` [B, D] and what the set knows of each image, atomically.

    Arrays: embeddings, ids, labels, cameras, label_names, camera_names, and provenance: `Trained.provenance`, with
    that of `images` as "embedded", as JSON.
    """
    facts = dict(provenance or {}) | {"embedded": images.provenance()}
    with atomic_write(path) as file:
        np.savez(
            file,
            embeddings=embeddings.numpy(),
            ids=np.array(images.ids, dtype=str),
            labels=images.labels.numpy(),
            cameras=images.cameras.numpy(),
            label_names=np.array(images.label_names, dtype=str),
            camera_names=np.array(images.camera_names, dtype=str),
            provenance=np.array(json.dumps(facts)),
        )


def read_embedding_file(path: str | Path) -> EmbeddingFile:
    """The content of an .npz file with an array "embeddings" [B, D]. No code from the file is run."""
    expected = f"path: expected an .npz file with an array 'embeddings' [B, D] of floats, got {path}"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        embeddings = arrays["embeddings"]
        facts = json.loads(arrays["provenance"].item()) if "provenance" in arrays else {}
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{expected}. Write one with `dissim embed` or numpy.savez.") from error
    if embeddings.ndim != 2 or embeddings.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{expected} with {embeddings.dtype} {list(embeddings.shape)}.")
    for name in ("ids", "labels", "cameras"):
        if name in arrays and arrays[name].shape != embeddings.shape[:1]:
            raise ValueError(
                f"path: expected {name} [{len(embeddings)}], one for each embedding, got {list(arrays[name].shape)}"
                f" in {path}."
            )
    return EmbeddingFile(
        torch.from_numpy(embeddings),
        ids=arrays["ids"].tolist() if "ids" in arrays else None,
        labels=torch.from_numpy(arrays["labels"]) if "labels" in arrays else None,
        cameras=torch.from_numpy(arrays["cameras"]) if "cameras" in arrays else None,
        provenance=facts,
    )


def read_embeddings(path: str | Path) -> Tensor:
    """The embeddings [B, D] of `read_embedding_file`."""
    return read_embedding_file(path).embeddings
