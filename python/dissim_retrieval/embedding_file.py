"""Embeddings on disk: a NumPy .npz that any tool can write or read, or an .npy with the embeddings only."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tokenize import TokenError
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
    cameras: np.ndarray | None = None
    """[B]: numbers or names."""
    label_names: np.ndarray | None = None
    camera_names: np.ndarray | None = None
    """If given, labels or cameras are indices into them."""
    provenance: dict = field(default_factory=dict)
    """Of the run that made them, and of the images: see `dissim_retrieval.provenance`."""

    def metadata(self) -> dict[str, Any]:
        """Columns of a gallery: "label" and "camera" of each image, as far as they are known, by name if possible."""
        given = {"label": (self.labels, self.label_names), "camera": (self.cameras, self.camera_names)}
        return {
            column: _named(column, values, names) for column, (values, names) in given.items() if values is not None
        }


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
    arrays = {name: _decoded(name, values, path) for name, values in arrays.items()}
    embeddings = as_array(arrays["embeddings"])
    if embeddings.ndim != 2 or embeddings.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"path: expected embeddings [N, D] of floats in {path}, got {embeddings.dtype} {list(embeddings.shape)}."
            + ("" if embeddings.ndim != 2 else ' Convert them: embeddings.astype("float32").')
        )
    for name in ("ids", "labels", "cameras"):
        if name in arrays and arrays[name].shape != embeddings.shape[:1]:
            raise ValueError(
                f"path: expected {name} [{len(embeddings)}], one for each embedding, got {list(arrays[name].shape)}"
                f" in {path}."
            )
    try:
        facts = json.loads(arrays["provenance"].item(), parse_constant=_no_json) if "provenance" in arrays else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"path: expected JSON in the array 'provenance' of {path}: {error}.") from error
    if not isinstance(facts, dict):
        raise ValueError(f"path: expected a JSON object in the array 'provenance' of {path}, got {facts!r}.")
    return EmbeddingFile(
        torch.from_numpy(embeddings),
        ids=arrays["ids"].tolist() if "ids" in arrays else None,
        labels=arrays.get("labels"),
        cameras=arrays.get("cameras"),
        label_names=arrays.get("label_names"),
        camera_names=arrays.get("camera_names"),
        provenance=facts,
    )


def read_labeled(path: str | Path, labels: str | Path | None = None) -> EmbeddingFile:
    """The content of a file of embeddings with a label for each: its own, or those of the file `labels`."""
    stored = read_embedding_file(path)
    if labels is None:
        if stored.labels is None:
            raise ValueError(
                f"labels: expected a file with the label of each row of {path}, got None, and {path} has no array"
                " 'labels'. Add the array to an .npz file, or pass labels (on the command line --labels FILE)."
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
    stored = read_labeled(path, labels)
    assert stored.labels is not None
    return stored.embeddings, stored.labels


def _decoded(name: str, values: np.ndarray, path: str | Path) -> np.ndarray:
    """Bytes as text."""
    if values.dtype.kind != "S":
        return values
    try:
        return np.char.decode(values, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: expected text in UTF-8, got {error.object!r} in {path}. Store it as str."
        ) from error


def _no_json(constant: str) -> None:
    raise ValueError(f"expected numbers, got {constant}")


def _named(column: str, values: np.ndarray, names: np.ndarray | None) -> np.ndarray:
    """The labels or cameras, by name if they are indices into names."""
    if names is None or values.dtype.kind not in "iu":
        return values
    if names.ndim != 1:
        raise ValueError(f"{column}_names: expected an array [n], got {list(names.shape)}.")
    if len(values) and not 0 <= values.min() <= values.max() < len(names):
        raise ValueError(
            f"{column}s: expected indices into the array {column}_names {list(names.shape)} of the same file, got"
            f" numbers from {values.min()} to {values.max()}."
        )
    return names[values]


def _load(path: str | Path) -> np.ndarray | dict[str, np.ndarray]:
    damage = (
        *(ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error),
        *(SyntaxError, TokenError),  # NumPy reads the header of an array as Python's text
        *(OverflowError, MemoryError),  # of a header with a shape that is too large
    )
    with open(path, "rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
        except damage as error:
            raise ValueError(
                f"path: expected an .npz or .npy file of numbers and text, got {path}: {error}."
            ) from error


def _labels(path: str | Path) -> np.ndarray:
    if Path(path).suffix == ".npy":
        return _decoded("labels", np.asarray(_load(path)), path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"labels: expected an .npy file, or text in UTF-8, got {path}.") from error
    return np.array(text.removesuffix("\n").split("\n") if text else [], dtype=str)
