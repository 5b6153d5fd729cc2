"""Which references count for a query, in kernels: what top-k and log-sum-exp share."""

from __future__ import annotations

import triton
import triton.language as tl

from ...contract import Filter


@triton.jit
def candidates(
    row_index, column_index, rows, columns, exclude_index, query_labels, reference_labels, AMONG_SAME: tl.constexpr
):
    """The pairs of a tile that exist and count, bool [BN, BM]."""
    in_rows, in_columns = row_index < rows, column_index < columns
    result = in_rows[:, None] & in_columns[None, :]
    if exclude_index is not None:
        excluded = tl.load(exclude_index + row_index, mask=in_rows, other=-1)
        result &= excluded[:, None] != column_index[None, :]
    if query_labels is not None:
        label = tl.load(query_labels + row_index, mask=in_rows, other=0)
        other = tl.load(reference_labels + column_index, mask=in_columns, other=0)
        result &= (label[:, None] == other[None, :]) == AMONG_SAME
    return result


def filter_operands(filter: Filter) -> dict:
    """The arguments, by name, of a kernel that calls `candidates`."""
    tensors = {
        name: None if x is None else x.contiguous() for name, x in zip(filter._fields, filter[:3], strict=False)
    }
    return tensors | {"AMONG_SAME": filter.among_same}
