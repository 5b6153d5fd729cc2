"""Sparse matrices in compressed-row form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SparseRows(NamedTuple):
    """A square matrix: the entries of row i are at offsets[i] to offsets[i + 1], columns ascending."""

    offsets: Tensor  #: int64 [B + 1]
    columns: Tensor  #: int64 [P]
    values: Tensor  #: [P]

    def transposed(self) -> SparseRows:
        """The transposed matrix."""
        count = len(self.offsets) - 1
        rows = torch.arange(count).repeat_interleave(self.offsets.diff())
        columns, order = self.columns.sort(stable=True)
        return SparseRows(torch.searchsorted(columns, torch.arange(count + 1)), rows[order], self.values[order])


def sum_duplicates(keys: Tensor, values: Tensor, count: int) -> SparseRows:
    """The matrix [count, count] of entries with keys row * count + column; values of the same key are added."""
    cells, place = keys.unique(return_inverse=True)
    total = values.new_zeros(len(cells)).index_add_(0, place, values)
    return SparseRows(torch.searchsorted(cells, torch.arange(count + 1) * count), cells % count, total)


def entries_of(matrix: SparseRows, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of these rows, which may repeat: for each its place in `rows` and its place in the matrix."""
    first = matrix.offsets[rows]
    size = matrix.offsets[rows + 1] - first
    place = torch.arange(len(rows)).repeat_interleave(size)
    return place, torch.arange(len(place)) - (size.cumsum(0) - size - first)[place]
