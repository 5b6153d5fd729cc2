"""Embeddings and labels as callers have them (tensors, NumPy arrays, lists), as tensors."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

#: What functions accept as embeddings or labels: a Tensor, a NumPy array, or nested lists of numbers.
ArrayLike: TypeAlias = Any


def as_array(value: ArrayLike) -> np.ndarray:
    """``np.asarray(value)``, copied if torch cannot take it: with a negative stride or another byte order."""
    array = np.asarray(value)
    if array.dtype.isnative and min(array.strides, default=0) >= 0:
        return array
    return array.astype(array.dtype.newbyteorder("="), order="C")


def as_tensor(value: ArrayLike) -> Tensor:
    """A tensor as it is; arrays and lists as a tensor of the same dtype."""
    return value if isinstance(value, Tensor) else torch.as_tensor(as_array(value))


def as_rows(name: str, value: ArrayLike, like: Tensor | None = None) -> Tensor:
    """A tensor as it is. NumPy arrays and lists get the dtype and device of `like`: by default float32 on the CPU."""
    if isinstance(value, Tensor):
        return value
    dtype, device = (torch.float32, None) if like is None else (like.dtype, like.device)
    try:
        array = as_array(value)
        if array.dtype.kind in "fiu":
            return torch.as_tensor(array, dtype=dtype, device=device)
        got = f"{type(value).__name__} of {array.dtype}"
    except ValueError:  # lists of different lengths
        got = f"{type(value).__name__} of rows of different lengths"
    raise TypeError(f"{name}: expected a tensor, NumPy array or list of rows of numbers, got {got}.")


def check_rows_finite(name: str, rows: Tensor, remedy: str = "Leave these rows out, or embed them again.") -> None:
    """Raise ValueError if a number of rows [N, D] is NaN or infinite."""
    finite = rows.isfinite().all(1)
    if not finite.all():
        bad = (~finite).nonzero()[:, 0]
        raise ValueError(
            f"{name}: expected finite numbers, got NaN or Inf in {len(bad)} of {len(rows)} rows, first in row"
            f" {int(bad[0])}. {remedy}"
        )


def as_indices(name: str, value: ArrayLike, device: torch.device | None = None) -> Tensor:
    """Labels, cameras or positions as int64. A tensor must have this dtype; arrays and lists may have any integers.

    Floats are not accepted, because they merge numbers above 2**24.
    """
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"{name}: expected integers, got {type(value).__name__} of {array.dtype}. Pass int64.")
        if array.dtype == np.uint64 and array.size and array.max() > (largest := np.iinfo(np.int64).max):
            raise ValueError(f"{name}: expected integers up to {largest}, got {array.max()}. Pass int64.")
        return torch.as_tensor(array.astype(np.int64), device=device)
    if value.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype int64, got {value.dtype}. Floats merge labels above 2**24.")
    return value
