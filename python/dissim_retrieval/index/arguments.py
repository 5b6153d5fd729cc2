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


def as_ids(
    ids: Any,
    count: int | None = None,
    id_type: pa.DataType | None = None,
    *,
    name: str = "ids",
    repeated: bool = False,
) -> pa.Array:
    """Ids as an Arrow array, int64 or string.

    count: the length expected; id_type: that of the index, None if free; name: of the argument, in errors; repeated:
    whether an id may be there twice.
    """
    kind = "int64 or str" if id_type is None else "int64" if id_type == INT_IDS else "str"
    expected = f"{name}: expected {kind} [{'n' if count is None else count}]"
    expected += "" if repeated else ", one per row and each once"
    values, got = _id_values(ids)
    kinds = {_id_type(kind) for kind in set(map(type, values or ()))}
    if values is None or len(kinds) > 1 or None in kinds or (count is not None and len(values) != count):
        raise ValueError(f"{expected}, got {got}.")
    made = kinds.pop() if values else id_type or INT_IDS
    if id_type is not None and made != id_type:
        raise ValueError(f"{expected}, as in this index, got {got}.")
    try:
        array = pa.array(values, made)
    except OverflowError as error:
        raise ValueError(f"{expected}, got {max(values, key=abs)}, which int64 cannot hold.") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{expected}, got {error.object!r}, which is not valid Unicode.") from error
    if not repeated and len(counts := array.value_counts()) < len(array):
        twice = next(one["values"] for one in counts.to_pylist() if one["counts"] > 1)
        raise ValueError(f"{expected}, got {twice!r} twice.")
    return array


def _id_values(ids: Any) -> tuple[list[Any] | None, str]:
    """Ids as a list of Python's values, None if they are no list, and what they are in words.

    A list is not made an array, because NumPy changes values then: of [1, "a"] it makes text, of [True, 2] numbers.
    """
    if hasattr(ids, "__array__"):  # of torch, NumPy, pandas or Arrow
        array = ids if isinstance(ids, Tensor) else np.asarray(ids)
        got = f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)}"
        return (array.tolist() if array.ndim == 1 else None), got
    if not isinstance(ids, Sequence) or isinstance(ids, str | bytes):
        return None, type(ids).__name__
    values = [value.item() if getattr(value, "ndim", None) == 0 else value for value in ids]
    names = sorted({type(value).__name__ for value in values}) or ["list"]
    return values, f"{' and '.join(names)} [{len(values)}]"


def _id_type(kind: type) -> pa.DataType | None:
    """The type of ids of a Python type; None if there are no such ids."""
    if issubclass(kind, str):
        return STR_IDS
    return INT_IDS if issubclass(kind, int) and kind is not bool else None


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
            values = values.detach().cpu()
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16
        wanted = known.field(name).type if known is not None and name in known.names else None
        columns[name] = _column(name, values, wanted)
    return pa.table(columns) if columns else pa.table({"": pa.nulls(count)}).select([])


def _column(name: str, values: Any, wanted: pa.DataType | None) -> pa.Array:
    what = wanted or "bool, numbers, str or times"
    try:
        array = pa.array(as_array(values) if isinstance(values, np.ndarray) else values, from_pandas=False)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_string_view(array.type):
            array = array.cast(pa.string())  # Arrow cannot take rows of a view
        if pa.types.is_null(array.type):
            array = array.cast(wanted or pa.string())
        if wanted is not None and not _is_cast(array.type, wanted):
            raise TypeError(str(array.type))
        if wanted is not None:
            array = array.cast(wanted)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"metadata: expected {what} in {name!r}, got {str(error).splitlines()[0]}.") from error
    if not any(kind(array.type) for kind in (pa.types.is_boolean, _is_number, _is_text, _is_time)):
        raise ValueError(f"metadata: expected {what} in {name!r}, got {array.type}.")
    return array


def _is_cast(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of a column may be cast. Arrow would also make 1 of True, True of 5 and text of numbers.

    Text may be cast to times, because JSON has none.
    """
    if _is_time(wanted):
        return _is_time(given) or _is_text(given)
    return any(kind(given) and kind(wanted) for kind in (pa.types.is_boolean, _is_number, _is_text))


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type)


def _is_time(type: pa.DataType) -> bool:
    return pa.types.is_temporal(type) and not pa.types.is_interval(type)


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)
