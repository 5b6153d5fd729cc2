"""What searches return: tensors, or NumPy arrays for a NumPy query."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from .entries import Entries
from .scan import Best

#: The score of what fills the results of an index with fewer than k candidates.
PADDING = float("-inf")


class SearchResult(NamedTuple):
    """scores [N, k] and ids [N, k], best first: int64, or an array of objects if the ids are str.

    Of a grouped search, ids are values of the column: int64 for integers except uint64, else an array of objects, in
    which times have microseconds.

    Where there are fewer than k candidates, the score is -inf and the id -1 or None.
    """

    scores: Any
    ids: Any


class RangeResult(NamedTuple):
    """Results in compressed-row form: those of query n are at offsets[n] to offsets[n + 1], best first."""

    offsets: Any  #: int64 [N + 1]
    scores: Any  #: [P]
    ids: Any  #: [P]


class StoredRows(NamedTuple):
    """Rows as the index stores them: transformed embeddings [B, D], and a list of values for each metadata column.

    Times are given in microseconds, which Python's have: digits of nanoseconds are cut off.
    """

    ids: Any
    embeddings: Any
    metadata: dict[str, list[Any]]


def search_result(best: Best, names: pa.Array, k: int, query: Any, column: str = "id") -> SearchResult:
    """`best`, padded to k columns. names: the id of every position, or its value in another column."""
    missing = (0, k - best.scores.shape[1])
    positions = F.pad(best.positions, missing, value=-1)
    known = pa.array(positions.flatten().numpy(), mask=(positions < 0).flatten().numpy())
    ids = present_ids(names.take(known), query, column)
    return SearchResult(like(F.pad(best.scores, missing, value=PADDING), query), ids.reshape(positions.shape))


def range_result(offsets: Tensor, scores: Tensor, positions: Tensor, names: pa.Array, query: Any) -> RangeResult:
    """The same for rows above a threshold."""
    ids = present_ids(names.take(pa.array(positions.numpy())), query)
    return RangeResult(like(offsets, query), like(scores, query), ids)


def stored_rows(entries: Entries, ids: Any) -> StoredRows:
    """Rows that were read for these ids."""
    rows = entries.rows
    if isinstance(ids, np.ndarray) and rows.dtype == torch.bfloat16:
        rows = rows.float()
    embeddings = rows.cpu().numpy() if isinstance(ids, np.ndarray) else rows
    columns = zip(entries.metadata.column_names, entries.metadata.columns, strict=True)
    metadata = {name: _python_values(name, values) for name, values in columns}
    return StoredRows(present_ids(entries.ids, ids), embeddings, metadata)


def present_ids(ids: pa.Array, like_this: Any, column: str = "id") -> Any:
    """Ids as int64, -1 for null, or as an array of objects. int64 cannot hold every uint64."""
    if pa.types.is_integer(ids.type) and ids.type != pa.uint64():
        return like(torch.from_numpy(ids.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)), like_this)
    return np.array([*_python_values(column, ids), None], object)[:-1]


def _python_values(column: str, values: Any) -> list[Any]:
    """Values as Python has them. Raises ValueError for times in other years, which another program may store."""
    try:
        return _in_microseconds(values).to_pylist()
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{column}: expected values that Python can hold, such as times of the years 1 to 9999, got others of"
            f" type {values.type}: {str(error).rstrip('.')}. Store them as numbers."
        ) from error


def _in_microseconds(values: Any) -> Any:
    """Times in nanoseconds, which Python does not have, in microseconds; other values as they are."""
    kind = values.type
    if getattr(kind, "unit", None) != "ns":
        return values
    if pa.types.is_timestamp(kind):
        coarser = pa.timestamp("us", kind.tz)
    else:
        coarser = pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")
    return values.cast(coarser, safe=False)


def like(values: Tensor, argument: Any) -> Any:
    """NumPy for a NumPy argument, else a tensor on the argument's device."""
    if isinstance(argument, np.ndarray):
        return values.cpu().numpy()
    return values.to(argument.device) if isinstance(argument, Tensor) else values
