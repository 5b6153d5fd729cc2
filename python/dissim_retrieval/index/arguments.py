"""Checks and conversions of what is passed to the index: embeddings, ids and metadata, of torch, NumPy or lists."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..arrays import as_array, as_tensor, check_rows_finite
from ..head import DissimilarityHead

INT_IDS, STR_IDS = pa.int64(), pa.large_string()
MAX_ID = int(np.iinfo(np.int64).max)
#: A column of metadata: SQL conditions name it without quotes, and names with "_" in front are the index's own.
COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
RESERVED = ("id", "embedding")


def as_embeddings(name: str, value: Any, dim: int) -> Tensor:
    """A float tensor [rows, dim] with finite values."""
    try:
        rows = as_tensor(value).detach()
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a tensor or array of floats, got {type(value).__name__}.") from error
    if not rows.is_floating_point():
        raise ValueError(f"{name}: expected floats, got {rows.dtype}. Convert them with .float().")
    if rows.dim() != 2 or rows.shape[1] != dim:
        hint = f" Pass {name}[None] for one row." if list(rows.shape) == [dim] else ""
        raise ValueError(f"{name}: expected [rows, {dim}], as the head's weight, got {list(rows.shape)}.{hint}")
    check_rows_finite(name, rows)
    return rows


@torch.no_grad()
def transformed(head: DissimilarityHead, name: str, embeddings: Any) -> Tensor:
    """Transformed rows in the dtype of the head; transformed in float32, because half precision may overflow."""
    weight = head.weight
    rows = as_embeddings(name, embeddings, len(weight)).to(weight.device)
    rows = head.transform(rows.to(torch.promote_types(weight.dtype, torch.float32))).to(weight.dtype)
    check_rows_finite(name, rows, f"The index stores {weight.dtype}, which cannot hold such numbers.")
    return rows


def check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: expected an integer of at least 1, got {k!r}.")


def check_threshold(threshold: float) -> None:
    try:
        is_number = not math.isnan(threshold)
    except (TypeError, ValueError, RuntimeError):  # no number, or several in an array or tensor
        is_number = False
    if not is_number:
        raise ValueError(f"threshold: expected a number, got {threshold!r}.")


def as_ids(ids: Any, count: int | None = None, type: pa.DataType | None = None) -> pa.Array:
    """Ids as an Arrow array, int64 or string. count: the length expected; type: that of the index, None if free."""
    if isinstance(ids, Tensor):
        ids = ids.detach().cpu().numpy()
    kind = "int64 or str" if type is None else "int64" if type == INT_IDS else "str"
    expected = f"ids: expected {kind} [{'n' if count is None else count}], one per row and each once"
    values = np.asarray(ids) if len(ids) else np.empty(0, np.int64 if type != STR_IDS else object)
    got = f"{values.dtype} {list(values.shape)}"
    if values.ndim != 1 or (count is not None and len(values) != count):
        raise ValueError(f"{expected}, got {got}.")
    if values.dtype.kind in "iu":
        made = INT_IDS
        if len(values) and int(values.max()) > MAX_ID:
            raise ValueError(f"{expected}, got {int(values.max())}, which int64 cannot hold.")
        array = pa.array(values.astype(np.int64))
    elif values.dtype.kind in "UO" and all(isinstance(value, str) for value in values):
        made = STR_IDS
        try:
            array = pa.array(values.tolist(), STR_IDS)
        except UnicodeEncodeError as error:
            raise ValueError(f"{expected}, got {error.object!r}, which is not valid Unicode.") from error
    else:
        raise ValueError(f"{expected}, got {got}.")
    if type is not None and made != type:
        raise ValueError(f"{expected}, as in this index, got {got}.")
    counts = array.value_counts()
    if len(counts) < len(array):
        twice = next(one["values"] for one in counts.to_pylist() if one["counts"] > 1)
        raise ValueError(f"{expected}, got {twice!r} twice.")
    return array


def as_metadata(metadata: Mapping[str, Sequence[Any]] | None, count: int, known: pa.Schema | None) -> pa.Table:
    """Columns of metadata. known: the columns that the index has, whose types apply."""
    columns: dict[str, pa.Array] = {}
    for name, values in (metadata or {}).items():
        if not isinstance(name, str) or not COLUMN_NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(
                f"metadata: expected names of letters, digits and _, not {' or '.join(RESERVED)}, got {name!r}."
            )
        if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != count:
            got = f"{len(values)} values" if hasattr(values, "__len__") else type(values).__name__
            raise ValueError(f"metadata: expected {count} values of {name!r}, one per row, got {got}.")
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        wanted = known.field(name).type if known is not None and name in known.names else None
        columns[name] = _column(name, values, wanted)
    return pa.table(columns) if columns else pa.table({"": pa.nulls(count)}).select([])


def _column(name: str, values: Any, wanted: pa.DataType | None) -> pa.Array:
    what = wanted or "bool, numbers, str or times"
    try:
        array = pa.array(as_array(values) if isinstance(values, np.ndarray) else values, from_pandas=False)
        if pa.types.is_null(array.type):
            array = array.cast(wanted or pa.string())
        if wanted is not None:
            array = array.cast(wanted)
    except (pa.ArrowException, TypeError, ValueError, UnicodeEncodeError) as error:
        raise ValueError(f"metadata: expected {what} in {name!r}, got {str(error).splitlines()[0]}.") from error
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
        raise ValueError(f"metadata: expected {what} in {name!r}, got {array.type}.")
    return array
