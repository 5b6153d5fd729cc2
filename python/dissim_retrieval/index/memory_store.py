"""The rows of an index in memory: every write makes a snapshot that shares the segments that did not change."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import lance
import numpy as np
import pyarrow as pa

from .entries import Entries, to_table
from .segments import MemoryRows, Segment, Snapshot
from .writing import LOCK_SECONDS, merge_targets

_names = itertools.count()


class MemoryStore:
    """Writes and reads as `LanceStore` does, without a folder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = itertools.count()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time."""
        if not self._lock.acquire(timeout=LOCK_SECONDS):
            raise TimeoutError(f"index: another thread has been writing for {LOCK_SECONDS} s. Try again later.")
        try:
            yield
        finally:
            self._lock.release()

    def latest(self, snapshot: Snapshot) -> Snapshot:
        return snapshot

    def newest_to_write(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, with small segments merged if there are many."""
        for target in merge_targets([part.num_live for part in snapshot.segments]):
            return self.compact(snapshot, target)
        return snapshot

    def append(self, snapshot: Snapshot, entries: Entries) -> Snapshot:
        entries = entries._replace(rows=entries.rows.clone())  # the caller may change them later
        schema = pa.unify_schemas([snapshot.schema or entries.schema, entries.schema])
        return self._next(snapshot, [*snapshot.segments, self._segment(entries)], schema)

    def replace(self, snapshot: Snapshot, positions: np.ndarray, entries: Entries) -> Snapshot:
        return self.append(replace(self.delete(snapshot, positions), version=snapshot.version), entries)

    def delete(self, snapshot: Snapshot, positions: np.ndarray) -> Snapshot:
        parts = zip(snapshot.segments, snapshot.split(positions), strict=True)
        segments = [segment.without(places) if len(places) else segment for segment, places in parts]
        return self._next(snapshot, [part for part in segments if part.num_live], snapshot.schema)

    def compact(self, snapshot: Snapshot, target: int) -> Snapshot:
        """Merge the segments with fewer rows than `target`, and drop deleted rows."""
        small = [part for part in snapshot.segments if part.num_live < target or part.live is not None]
        if len(small) < 2 and all(part.live is None for part in small):
            return snapshot
        rows = replace(snapshot, segments=tuple(small), cache={})
        order = np.sort(
            np.concatenate([part.sequence if part.live is None else part.sequence[part.live] for part in small])
        )
        merged = self._segment(self.read(rows, rows.positions(order)))
        return self._next(
            snapshot, [*(part for part in snapshot.segments if part not in small), merged], snapshot.schema
        )

    def _next(self, snapshot: Snapshot, segments: list[Segment], schema: pa.Schema | None) -> Snapshot:
        return Snapshot(snapshot.version + 1, tuple(segments), schema)

    def _segment(self, entries: Entries) -> Segment:
        rows = MemoryRows(entries.rows)
        return Segment((next(self._keys),), entries.sequence, entries.ids, rows, metadata=entries.metadata)

    def read(self, snapshot: Snapshot, positions: np.ndarray) -> Entries:
        """The rows at these positions."""
        metadata = self._metadata(snapshot).take(pa.array(positions))
        ids = snapshot.ids.take(pa.array(positions))
        return Entries(ids, snapshot.sequence(positions), snapshot.take(positions), metadata)

    def _metadata(self, snapshot: Snapshot) -> pa.Table:
        assert snapshot.schema is not None
        columns = {
            field.name: pa.chunked_array(
                [
                    part.metadata.column(field.name).combine_chunks()
                    if part.metadata is not None and field.name in part.metadata.column_names
                    else pa.nulls(len(part.sequence), field.type)
                    for part in snapshot.segments
                ],
                field.type,
            )
            for field in snapshot.schema
            if field.name != "id"
        }
        return pa.table(columns) if columns else pa.table({"": pa.nulls(len(snapshot.ids))}).select([])

    def select(self, snapshot: Snapshot, condition: str, columns: list[str]) -> pa.Table:
        """The columns, and "_sequence", of the live rows that satisfy an SQL condition."""
        dataset = snapshot.cache.get("dataset")
        if dataset is None:
            table = self._metadata(snapshot).append_column("id", snapshot.ids)
            table = table.append_column("_sequence", pa.array(snapshot.sequence(np.arange(len(snapshot.ids)))))
            dataset = lance.write_dataset(
                table.filter(pa.array(snapshot.live)), f"memory://dissim-index-{next(_names)}"
            )
            snapshot.cache["dataset"] = dataset
        return dataset.to_table(columns=[*columns, "_sequence"], filter=condition)

    def tables(self, snapshot: Snapshot) -> Iterator[pa.Table]:
        """All live rows, in the order of their sequence numbers within each segment."""
        for segment in snapshot.segments:
            places = np.arange(len(segment.sequence))
            one = replace(snapshot, segments=(segment,), cache={})
            yield to_table(self.read(one, places[segment.is_live(places)]))

    def verify(self, snapshot: Snapshot) -> None:
        """Nothing to check: the rows have never left memory."""
