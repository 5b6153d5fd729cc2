"""What a search reads: an immutable snapshot of the index, made of segments of rows.

A write makes a new snapshot that shares the segments that did not change, so a search never sees half of a write.

A row is identified by its sequence number: the order in which ids were added. It survives updates and compaction, and
equal scores are ordered by it. The rows of a segment are in this order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from .preparation import Preparation

#: Values of rows that are gathered or read at a time: 64 MiB in float32.
BLOCK_VALUES = 1 << 24
#: If a smaller share of a segment satisfies a filter, scoring copies of these rows is faster than a scan of codes.
GATHERED_SHARE = 1 / 16


class Block(NamedTuple):
    """Rows that one call of a kernel scores."""

    rows: Tensor  #: [m, D]
    first: int  #: position in the segment of the first row, if `places` is None
    places: np.ndarray | None  #: position in the segment of every row
    excluded: Tensor | None  #: int64 [m], 1 for rows that are no candidates
    candidates: int
    prepared: dict[str, Any]  #: arguments of `fused_dissim_topk`

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Positions in the segment of rows of the block."""
        return self.first + rows if self.places is None else self.places[rows]


class MemoryRows:
    """The rows of a segment in memory, and what was prepared of them."""

    def __init__(self, rows: Tensor, prepared: Any | None = None) -> None:
        self.rows = rows
        self._prepared = prepared
        self._lock = threading.Lock()

    def prepared(self, preparation: Preparation, weight: Tensor) -> Any:
        """What is prepared of the rows for these weights, made when it is first needed."""
        with self._lock:
            made = self._prepared
            if made is None or not torch.equal(made.weight, weight.to(made.weight.dtype)):
                made = self._prepared = preparation.make(self.rows, weight)
            return made

    def take(self, places: np.ndarray) -> Tensor:
        return self.rows[torch.from_numpy(places).to(self.rows.device)]

    def read(self) -> Iterator[tuple[np.ndarray | None, Tensor]]:
        """All rows, in parts: their positions (None: every row in order) and the rows."""
        yield None, self.rows


@dataclass(frozen=True)
class StreamedRows:
    """The rows of a segment on disk. `batches` reads them: sequence numbers and rows, in any order."""

    batches: Callable[[], Iterator[tuple[np.ndarray, Tensor]]]
    sequence: np.ndarray

    def read(self) -> Iterator[tuple[np.ndarray | None, Tensor]]:
        for sequence, rows in self.batches():
            order = sequence.argsort()
            yield self.sequence.searchsorted(sequence[order]), rows[torch.from_numpy(order).to(rows.device)]

    def take(self, places: np.ndarray) -> Tensor:
        wanted = {int(place): number for number, place in enumerate(places)}
        found: list[Tensor | None] = [None] * len(places)
        for at, rows in self.read():
            assert at is not None
            for row in np.isin(at, places).nonzero()[0]:
                found[wanted[int(at[row])]] = rows[row].clone()  # a view would keep the block in memory
        return torch.stack([row for row in found if row is not None])


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows that were written together. `live` is False for those deleted since; None if all are live."""

    key: tuple
    sequence: np.ndarray  #: int64, ascending
    ids: pa.Array
    vectors: MemoryRows | StreamedRows
    live: np.ndarray | None = None
    metadata: pa.Table | None = None  #: of an index in memory

    @cached_property
    def num_live(self) -> int:
        return len(self.sequence) if self.live is None else int(self.live.sum())

    def without(self, deleted: np.ndarray) -> Segment:
        """The segment in which these positions are deleted."""
        live = np.ones(len(self.sequence), bool) if self.live is None else self.live.copy()
        live[deleted] = False
        return replace(self, live=live)

    def is_live(self, places: np.ndarray) -> np.ndarray:
        return np.ones(len(places), bool) if self.live is None else self.live[places]

    def blocks(self, chosen: np.ndarray | None, preparation: Preparation | None, weight: Tensor) -> Iterator[Block]:
        """The candidates in blocks. chosen: ascending positions of live rows, None for all live rows."""
        if isinstance(self.vectors, StreamedRows):
            yield from self._streamed_blocks(chosen)
            return
        rows, prepared = self.vectors.rows, {}
        gathered = chosen is not None and len(chosen) < GATHERED_SHARE * len(rows)
        if preparation is not None and len(rows) >= preparation.min_rows and not gathered:
            prepared = {preparation.argument: self.vectors.prepared(preparation, weight)}
        if chosen is None:
            if self.num_live:
                yield Block(rows, 0, None, self._deleted, self.num_live, prepared)
        elif prepared:
            yield Block(rows, 0, None, self._all_but(chosen), len(chosen), prepared)
        else:
            size = max(1, BLOCK_VALUES // rows.shape[1])
            for places in np.split(chosen, range(size, len(chosen), size)):
                if len(places):
                    yield Block(self.vectors.take(places), 0, places, None, len(places), {})

    def _streamed_blocks(self, chosen: np.ndarray | None) -> Iterator[Block]:
        for places, rows in self.vectors.read():
            assert places is not None
            keep = self.is_live(places) if chosen is None else np.isin(places, chosen)
            if keep.all():
                yield Block(rows, 0, places, None, len(places), {})
            elif keep.any():
                kept = rows[torch.from_numpy(keep).to(rows.device)]
                yield Block(kept, 0, places[keep], None, len(kept), {})

    @cached_property
    def _deleted(self) -> Tensor | None:
        return None if self.live is None else self._all_but(self.live.nonzero()[0])

    def _all_but(self, chosen: np.ndarray) -> Tensor:
        assert isinstance(self.vectors, MemoryRows)
        excluded = torch.ones(len(self.sequence), dtype=torch.int64)
        excluded[torch.from_numpy(chosen)] = 0
        return excluded.to(self.vectors.rows.device)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One version of the index. The position of a row: its place in the segments, one after the other."""

    version: int = 0
    segments: tuple[Segment, ...] = ()
    schema: pa.Schema | None = None  #: id and metadata columns; None until the first rows are added
    handle: Any = None  #: what the store needs to read this version
    cache: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(segment.num_live for segment in self.segments)

    @cached_property
    def offsets(self) -> np.ndarray:
        return np.cumsum([0, *(len(segment.sequence) for segment in self.segments)])

    @cached_property
    def ids(self) -> pa.Array:
        """The id of every position."""
        type = pa.int64() if self.schema is None else self.schema.field("id").type
        return pa.concat_arrays([pa.array([], type), *(part.ids for part in self.segments)])

    @cached_property
    def live(self) -> np.ndarray:
        """Whether the row at each position is live."""
        parts = (part.is_live(np.arange(len(part.sequence))) for part in self.segments)
        return np.concatenate([np.empty(0, bool), *parts])

    @cached_property
    def next_sequence(self) -> int:
        return max((int(part.sequence[-1]) + 1 for part in self.segments if len(part.sequence)), default=0)

    @cached_property
    def max_id(self) -> int:
        """The largest id of the live rows of an index with int64 ids; -1 if it is empty."""
        return pc.max(self.ids.filter(pa.array(self.live))).as_py() if len(self) else -1

    def locate(self, ids: pa.Array) -> np.ndarray:
        """The position of every id; -1 for an id that the index does not have."""
        found = np.full(len(ids), -1)
        for segment, offset in zip(self.segments, self.offsets[:-1], strict=True):
            number = pc.index_in(segment.ids, value_set=ids)
            places = pc.is_valid(number).to_numpy(zero_copy_only=False).nonzero()[0]
            places = places[segment.is_live(places)]
            found[number.take(pa.array(places)).to_numpy(zero_copy_only=False).astype(np.int64)] = offset + places
        return found

    def positions(self, sequence: np.ndarray) -> np.ndarray:
        """The positions of the live rows with these sequence numbers, which all exist."""
        found = np.full(len(sequence), -1)
        for segment, offset in zip(self.segments, self.offsets[:-1], strict=True):
            if not len(segment.sequence):
                continue
            places = segment.sequence.searchsorted(sequence).clip(max=len(segment.sequence) - 1)
            hit = (segment.sequence[places] == sequence) & segment.is_live(places)
            found[hit] = offset + places[hit]
        return found

    def sequence(self, positions: np.ndarray) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int64), *(part.sequence for part in self.segments)])[positions]

    def split(self, positions: np.ndarray) -> list[np.ndarray]:
        """Positions as ascending positions within each segment."""
        ordered = np.sort(positions)
        bounds = ordered.searchsorted(self.offsets)
        return [
            ordered[first:last] - offset
            for first, last, offset in zip(bounds[:-1], bounds[1:], self.offsets[:-1], strict=True)
        ]

    def take(self, positions: np.ndarray) -> Tensor:
        """The rows at these positions, [len(positions), D]."""
        order = positions.argsort(kind="stable")
        parts = [
            segment.vectors.take(places)
            for segment, places in zip(self.segments, self.split(positions), strict=True)
            if len(places)
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        rows = torch.cat(parts)
        return rows[torch.from_numpy(back).to(rows.device)]
