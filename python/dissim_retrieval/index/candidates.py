"""Which rows a search scores: those that satisfy a filter, or have a value in the column of a grouped search."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .arguments import as_ids
from .condition import in_parentheses
from .lance_store import LanceStore, first_sentence
from .memory_store import MemoryStore
from .scan import FUSE, Candidates
from .segments import Snapshot

#: What Lance raises as RuntimeError for SQL that it parses but does not implement, such as a placeholder "?".
ABORTED = "Task was aborted"


def matching(store: MemoryStore | LanceStore, snapshot: Snapshot, filter: Any) -> np.ndarray | None:
    """Positions of the rows that satisfy the filter: an SQL condition or a list of ids. None for all."""
    if filter is None:
        return None
    if not len(snapshot):
        return np.empty(0, np.int64)
    if not isinstance(filter, str):
        assert snapshot.schema is not None
        listed = as_ids(filter, None, snapshot.schema.field("id").type, name="filter", repeated=True)
        found = snapshot.locate(listed)
        return found[found >= 0]
    try:
        table = store.select(snapshot, in_parentheses(filter), [])
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and str(error) != ABORTED:
            raise
        names = ", ".join(snapshot.schema.names if snapshot.schema is not None else [])
        expected = f"filter: expected an SQL condition on {names}, got {filter!r}"
        reason = first_sentence(str(error).replace(f"({filter}\n)", "..."))
        raise ValueError(f"{expected}: {reason}.") from error
    return snapshot.positions(table.column("_sequence").to_numpy())


class Grouped(NamedTuple):
    """Rows that have a value in a column: their sequence numbers, in any order, and the values."""

    sequence: np.ndarray
    values: pa.Array


def grouped(store: MemoryStore | LanceStore, snapshot: Snapshot, column: str, filter: Any) -> Grouped:
    """The rows that satisfy the filter and have a value in a column of metadata."""
    names = [] if snapshot.schema is None else snapshot.schema.names
    if column not in names:
        raise ValueError(f"group_by: expected a metadata column, one of {', '.join(names)}, got {column!r}.")
    chosen = matching(store, snapshot, filter)
    table = store.select(snapshot, f"`{column}` IS NOT NULL", [column])
    sequence, values = table.column("_sequence").to_numpy(), table.column(column).combine_chunks()
    if chosen is not None:
        keep = np.isin(sequence, snapshot.sequence(chosen))
        sequence, values = sequence[keep], values.filter(pa.array(keep))
    return Grouped(sequence, values)


def numbered(parts: list[Grouped]) -> tuple[Candidates, pa.Array]:
    """The candidates of all parts, and the value of each number of a group."""
    sequence = np.concatenate([part.sequence for part in parts])
    order = sequence.argsort()
    values = pa.concat_arrays([part.values for part in parts]).take(pa.array(order)).dictionary_encode()
    return Candidates(sequence[order], values.indices.to_numpy().astype(np.int64)), values.dictionary


def check_fuse(fuse: str) -> None:
    if fuse not in FUSE:
        raise ValueError(f"fuse: expected one of {', '.join(FUSE)}, got {fuse!r}.")
