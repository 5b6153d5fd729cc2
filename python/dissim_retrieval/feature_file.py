"""read_features: embeddings and labels made elsewhere, from NumPy's files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_features(path: str | Path, labels: str | Path | None = None) -> tuple[Tensor, np.ndarray]:
    """Embeddings [N, D] and their labels [N], as `fit_head` takes them. No code from the files is run.

    Args:
        path: an .npz file with arrays "embeddings" and "labels" (as `dissim embed` writes), or an .npy file with the
            embeddings.
        labels: the labels of an .npy file: another .npy file, or a text file with one label a line.

    Raises ValueError that names the file for one that is damaged, lacks an array or has another shape.
    """
    arrays = _load(path)
    if isinstance(arrays, dict):
        if labels is not None:
            raise ValueError(f"labels: expected None with {path}, an .npz file has its own, got {labels}.")
        missing = {"embeddings", "labels"} - arrays.keys()
        if missing:
            raise ValueError(
                f"path: expected arrays 'embeddings' and 'labels' in {path}, got {', '.join(arrays) or 'none'}. "
                "Write them with numpy.savez(path, embeddings=..., labels=...)."
            )
        embeddings, names = arrays["embeddings"], arrays["labels"]
    elif labels is None:
        raise ValueError(f"labels: expected a file with the label of each row of {path}, got None.")
    else:
        embeddings, names = arrays, _labels(labels)
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f":
        raise ValueError(
            f"path: expected embeddings [N, D] of floats in {path}, got {embeddings.dtype} {list(embeddings.shape)}."
        )
    if names.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels: expected one for each of the {len(embeddings)} rows of {path}, got shape {list(names.shape)}."
        )
    return torch.from_numpy(embeddings), names


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
