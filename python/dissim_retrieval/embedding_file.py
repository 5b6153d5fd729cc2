"""Embeddings on disk: a NumPy .npz that any tool can write or read, or an .npy with the embeddings only."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import as_array
from .atomic import atomic_write
from .data import ImageSet


@dataclass(frozen=True)
class EmbeddingFile:
    """The content of an embeddings file. All but the embeddings may be absent."""

    embeddings: Tensor
    """[B, D] of a floating dtype."""
    ids: list[Any] | None = None
    """Of the images, as `ImageSet.ids`."""
    labels: np.ndarray | None = None
    """[B]: numbers or names."""
    metadata: dict[str, np.ndarray] = field(default_factory=dict)
    """Columns of a gallery: "label" and "camera" of each image, of which the file has arrays "labels" and "cameras".
    They are names if the file has "label_names" and "camera_names"."""
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
    """The content of an .npz file with an array "embeddings" [B, D], or of an .npy file. No code from it is run."""
    loaded = _load(path)
    arrays = loaded if isinstance(loaded, dict) else {"embeddings": loaded}
    if "embeddings" not in arrays:
        raise ValueError(
            f"path: expected an array 'embeddings' in {path}, got {', '.join(arrays) or 'none'}. Write it with"
            " `dissim embed` or numpy.savez(path, embeddings=...)."
        )
    embeddings = as_array(arrays["embeddings"])
    if embeddings.ndim != 2 or embeddings.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"path: expected embeddings [N, D] of floats in {path}, got {embeddings.dtype} {list(embeddings.shape)}."
        )
    for name in ("ids", "labels", "cameras"):
        if name in arrays and arrays[name].shape != embeddings.shape[:1]:
            raise ValueError(
                f"path: expected {name} [{len(embeddings)}], one for each embedding, got {list(arrays[name].shape)}"
                f" in {path}."
            )
    try:
        facts = json.loads(arrays["provenance"].item()) if "provenance" in arrays else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"path: expected JSON in the array 'provenance' of {path}: {error}.") from error
    if not isinstance(facts, dict):
        raise ValueError(f"path: expected a JSON object in the array 'provenance' of {path}, got {facts!r}.")
    return EmbeddingFile(
        torch.from_numpy(embeddings),
        ids=arrays["ids"].tolist() if "ids" in arrays else None,
        labels=arrays.get("labels"),
        metadata={one: _names(arrays, one, path) for one in ("label", "camera") if f"{one}s" in arrays},
        provenance=facts,
    )


def read_labelled(path: str | Path, labels: str | Path | None = None) -> EmbeddingFile:
    """The content of a file of embeddings with a label for each: its own, or those of the file `labels`."""
    stored = read_embedding_file(path)
    if labels is None:
        if stored.labels is None:
            raise ValueError(
                f"labels: expected a file with the label of each row of {path}, got None. An .npz file may have them"
                " as its array 'labels'."
            )
        return stored
    if stored.labels is not None:
        raise ValueError(f"labels: expected None with {path}, which has labels, got {labels}.")
    names = _labels(labels)
    if names.shape != (len(stored.embeddings),):
        raise ValueError(
            f"labels: expected one for each of the {len(stored.embeddings)} rows of {path}, got shape"
            f" {list(names.shape)} in {labels}."
        )
    return replace(stored, labels=names)


def read_features(path: str | Path, labels: str | Path | None = None) -> tuple[Tensor, np.ndarray]:
    """Embeddings [N, D] and their labels [N], as `fit_head` takes them. No code from the files is run.

    Args:
        path: an .npz file with an array "embeddings" (as `dissim embed` writes), or an .npy file with the embeddings.
        labels: another .npy file, or a text file with one label a line. None: the array "labels" of the .npz file.

    Raises ValueError that names the file for one that is damaged, lacks an array or has another shape.
    """
    stored = read_labelled(path, labels)
    assert stored.labels is not None
    return stored.embeddings, stored.labels


def _names(arrays: Mapping[str, np.ndarray], one: str, path: str | Path) -> np.ndarray:
    """The label or the camera of each row: its name, or its number if the file has no names."""
    values, names = arrays[f"{one}s"], arrays.get(f"{one}_names")
    if names is None:
        return values
    numbers = np.issubdtype(values.dtype, np.integer)
    if names.ndim != 1 or not numbers or (len(values) and not 0 <= values.min() <= values.max() < len(names)):
        raise ValueError(
            f"path: expected {one}s in {path} that are indices into {one}_names, of which there are {names.size}, got"
            f" {values.dtype}" + (f" from {values.min()} to {values.max()}." if numbers and len(values) else ".")
        )
    return names[values]


def _load(path: str | Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: expected an .npz or .npy file of numbers and text, got {path}: {error}.") from error


def _labels(path: str | Path) -> np.ndarray:
    if Path(path).suffix == ".npy":
        return np.asarray(_load(path))
    try:
        return np.array(Path(path).read_text(encoding="utf-8").splitlines(), dtype=str)
    except UnicodeDecodeError as error:
        raise ValueError(f"labels: expected an .npy file, or text in UTF-8, got {path}.") from error
