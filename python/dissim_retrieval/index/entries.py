"""Rows with their ids and metadata on the way into the index, and the table in which they are stored."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .checksum import row_checksums


class Entries(NamedTuple):
    """Rows to write, or rows that were read. All parts have the same length."""

    ids: pa.Array
    sequence: np.ndarray
    rows: Tensor
    metadata: pa.Table

    @property
    def schema(self) -> pa.Schema:
        """The columns that a user sees: id and metadata."""
        return pa.schema([pa.field("id", self.ids.type), *self.metadata.schema])


def to_table(entries: Entries) -> pa.Table:
    """Columns id, metadata, embedding, _sequence and _checksum."""
    table = pa.table(
        {"id": entries.ids} | dict(zip(entries.metadata.column_names, entries.metadata.columns, strict=True))
    )
    table = table.append_column("embedding", to_arrow(entries.rows))
    table = table.append_column("_sequence", pa.array(entries.sequence))
    return table.append_column("_checksum", pa.array(row_checksums(table)))


def to_arrow(rows: Tensor) -> pa.Array:
    """Rows [m, D] as fixed-size lists."""
    values = arrow_view(rows.detach().cpu().contiguous())
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), rows.shape[1])


def arrow_view(rows: Tensor) -> np.ndarray:
    """Rows on the CPU as an array of a type that Arrow has. It has no bfloat16: its bits are stored as int16."""
    return (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()


def from_arrow(column: pa.Array) -> np.ndarray:
    """Fixed-size lists as an array [m, D], which may be read-only."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
