"""The rows of an index on disk: a Lance dataset in the folder `rows`.

Every write makes new files first and then one new version, atomically. Lance alone would do the same for each of its
own calls; the steps are separate here so that `sync` can wait for the disk before a version names the files.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from lance import LanceDataset, LanceOperation
from lance.fragment import LanceFragment, write_fragments
from lance.optimize import Compaction
from torch import Tensor

from .checksum import row_checksums
from .entries import Entries, arrow_view, from_arrow, to_table
from .preparation import PREPARATIONS, Preparation
from .prepared_files import PreparedFiles, remove_unused
from .segments import BLOCK_VALUES, MemoryRows, Segment, Snapshot, StreamedRows
from .settings import damaged, folder_identity, sync
from .writing import LOCK_SECONDS, merge_targets

OWN_COLUMNS = ("embedding", "_sequence", "_checksum")
#: How Lance begins errors about files. Its errors about a condition quote it, so it may be anywhere in them.
UNREADABLE = re.compile(r"(?!Invalid user input)(?:[\w ]+: )*LanceError\(IO\)")
#: Earlier versions are kept this long, for readers that have not called refresh().
KEPT = timedelta(hours=1)


class LanceStore:
    """Reads snapshots of a folder and writes new versions into it.

    Args:
        weight: that of the head. The rows in memory have its dtype, and are on its device.
        preparation: what searches prepare of the rows; it is stored beside them.
        in_memory: read the rows when a version is opened; otherwise every search reads them.
        sync: a write returns after the disk has it.
    """

    def __init__(
        self,
        path: Path,
        weight: Tensor,
        preparation: Preparation | None = None,
        *,
        in_memory: bool = True,
        sync: bool = False,
    ) -> None:
        path = path.absolute()  # Lance takes what is before a colon for a kind of storage; and the folder may change
        self.path, self.in_memory, self.sync = path, in_memory, sync
        self.device, self.dtype = weight.device, weight.dtype
        self._files = {one: PreparedFiles(path, one, weight) for one in PREPARATIONS}
        self._prepared = None if preparation is None else self._files[preparation]
        self._uri, self._process = str(path / "rows"), os.getpid()
        self._synced: set[Path] = set()
        self._identity: tuple[int, int] | None = None  #: of the folder, when it was first used

    @property
    def arguments(self) -> tuple[Path, torch.device, bool, bool]:
        """path, device, in_memory and sync."""
        return self.path, self.device, self.in_memory, self.sync

    # --- one writer -------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time, of all threads and processes on this machine."""
        self._check_process()
        self.check_not_replaced()  # the lock would make a folder that was removed
        with write_lock(self.path):
            self.check_not_replaced()  # by the writer before this one
            try:
                yield
            except OSError as error:
                raise OSError(f"path: {self.path} cannot be written: {first_sentence(error)}.") from error

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                "index: expected the process that opened it, got a fork of it, in which Lance does not work. "
                "Start processes with the 'spawn' method and open the index in each."
            )

    def check_not_replaced(self) -> None:
        """Raise OSError if the folder is no longer that which was opened.

        The versions of another index have the same numbers, so its rows could be taken for those of this one.
        """
        found = folder_identity(self.path)
        self._identity = self._identity or found
        if found != self._identity:
            raise OSError(f"path: {self.path} was replaced by another index, or removed. Open it again.")

    # --- read -------------------------------------------------------------------------------------------------

    def latest(self, snapshot: Snapshot) -> Snapshot:
        """The newest version. Segments that did not change are shared with `snapshot`."""
        dataset = self.dataset()
        return Snapshot() if dataset is None else self.snapshot(dataset, snapshot)

    def dataset(self, version: int | None = None) -> LanceDataset | None:
        """The newest version of the dataset, or the given one; None if nothing has been written."""
        self._check_process()
        self.check_not_replaced()
        if not self._exists():
            return None
        with self._reading():
            return lance.dataset(self._uri, version=version)

    def snapshot(self, dataset: LanceDataset, before: Snapshot, fragments: Collection[int] | None = None) -> Snapshot:
        """What searches of a version read. fragments: ids of those to read, None for all."""
        if dataset.version == before.version:
            return before
        with self._reading():
            known = {segment.key: segment for segment in before.segments}
            segments = [
                self._segment(fragment, known)
                for fragment in dataset.get_fragments()
                if fragments is None or fragment.fragment_id in fragments
            ]
            schema = pa.schema([field for field in dataset.schema if field.name not in OWN_COLUMNS])
        return Snapshot(dataset.version, tuple(part for part in segments if part.num_live), schema, dataset)

    def _segment(self, fragment: LanceFragment, known: dict[tuple, Segment]) -> Segment:
        """The segment of a fragment. known: those of an earlier version, by their keys."""
        key = (fragment.fragment_id, *(file.path for file in fragment.data_files()))
        before = known.get(key)
        if before is None:
            return self._new_segment(fragment, key)
        if self.in_memory and before.num_live == fragment.count_rows():
            return before
        return self._changed_segment(fragment, before)

    def _changed_segment(self, fragment: LanceFragment, before: Segment) -> Segment:
        """A segment without the rows that were deleted since, and on disk with the fragment's present files."""
        sequence = _int64(fragment.to_table(columns=["_sequence"]), "_sequence")
        segment = before.without(~np.isin(before.sequence, sequence))
        return segment if self.in_memory else replace(segment, vectors=self._streamed(fragment, segment.sequence))

    def _new_segment(self, fragment: LanceFragment, key: tuple) -> Segment:
        """A segment in the order of its sequence numbers, which may be another than that of the fragment."""
        table = fragment.to_table(columns=["_sequence", "id"], **self._deleted_too)
        sequence, order = _int64(table, "_sequence"), None
        if not (np.diff(sequence) > 0).all():
            order = sequence.argsort()
            table, sequence = table.take(pa.array(order)), sequence[order]
        ids = table.column("id").combine_chunks()
        if not self.in_memory:
            return Segment(key, sequence, ids, self._streamed(fragment, sequence))
        segment = Segment(key, sequence, ids, self._memory_rows(fragment, key, len(sequence), order))
        deleted = table["_rowid"].is_null().to_numpy() if self._deleted_too else np.zeros(len(sequence), bool)
        return segment.without(deleted) if deleted.any() else segment

    def _memory_rows(self, fragment: LanceFragment, key: tuple, count: int, order: np.ndarray | None) -> MemoryRows:
        rows = self._all_rows(fragment, count)
        if order is not None:
            rows = rows[torch.from_numpy(order).to(rows.device)]
        prepared = None if self._prepared is None else self._prepared.read(key[1], count)
        return MemoryRows(rows, prepared)

    @property
    def _deleted_too(self) -> dict[str, Any]:
        """Arguments to read deleted rows as well, with null as their number: the prepared files have them."""
        return {} if self._prepared is None else {"include_deleted_rows": True, "with_row_id": True}

    def _streamed(self, fragment: LanceFragment, sequence: np.ndarray) -> StreamedRows:
        return StreamedRows(lambda: self._batches(fragment), sequence)

    def _all_rows(self, fragment: LanceFragment, count: int) -> Tensor:
        rows = torch.empty(count, fragment.schema.field("embedding").type.list_size, dtype=self.dtype)
        values, first = arrow_view(rows), 0
        for batch in self._record_batches(fragment):
            values[first : first + len(batch)] = from_arrow(batch.column("embedding"))
            first += len(batch)
        return rows.to(self.device)

    def _batches(self, fragment: LanceFragment) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Sequence numbers and rows of a fragment, in the order of its file."""
        for batch in self._record_batches(fragment):
            values = torch.from_numpy(from_arrow(batch.column("embedding")).copy())
            yield _int64(batch, "_sequence"), values.view(self.dtype).to(self.device)

    def _record_batches(self, fragment: LanceFragment) -> Iterator[pa.RecordBatch]:
        size = max(1, BLOCK_VALUES // fragment.schema.field("embedding").type.list_size)
        with self._reading():
            yield from fragment.to_batches(columns=["_sequence", "embedding"], batch_size=size, **self._deleted_too)

    def read(self, snapshot: Snapshot, positions: np.ndarray) -> Entries:
        """The rows at these positions."""
        sequence = snapshot.sequence(positions)
        assert snapshot.schema is not None
        names = [name for name in snapshot.schema.names if name != "id"]
        found = self.select(snapshot, _is_in(sequence), names)
        order = _int64(found, "_sequence").argsort()[sequence.argsort().argsort()]
        metadata = found.select(names).take(pa.array(order))
        return Entries(snapshot.ids.take(pa.array(positions)), sequence, snapshot.take(positions), metadata)

    def select(self, snapshot: Snapshot, condition: str, columns: list[str]) -> pa.Table:
        """The columns, and "_sequence", of the snapshot's live rows that satisfy an SQL condition."""
        self._check_process()
        try:
            fragments = [snapshot.handle.get_fragment(segment.key[0]) for segment in snapshot.segments]
            scanner = snapshot.handle.scanner([*columns, "_sequence"], condition, fragments=fragments)
            return scanner.to_table()
        except (OSError, ValueError) as error:
            if not UNREADABLE.match(str(error)):
                raise
            raise self._missing(error) from error

    def tables(self, snapshot: Snapshot) -> Iterator[pa.Table]:
        """All live rows, in parts."""
        with self._reading():
            for fragment in [] if snapshot.handle is None else snapshot.handle.get_fragments():
                for batch in fragment.to_batches(columns=[*snapshot.handle.schema.names]):
                    yield pa.Table.from_batches([batch])

    def verify(self, snapshot: Snapshot) -> None:
        """Read every row, and every file that was prepared of the rows, and compare them with their checksums."""
        count = 0
        for table in self.tables(snapshot):
            count += len(table)
            wrong = row_checksums(table) != _int64(table, "_checksum")
            if wrong.any():
                ids = table.column("id").filter(pa.array(wrong)).to_pylist()
                raise damaged(self.path, f"{len(ids)} rows differ from their checksums, the first with id {ids[0]!r}")
        if count != len(snapshot) or len(snapshot.ids.filter(pa.array(snapshot.live)).unique()) != count:
            raise damaged(self.path, "rows that were deleted are there again")
        for fragment in [] if snapshot.handle is None else snapshot.handle.get_fragments():
            for files in self._files.values():
                files.read(fragment.data_files()[0].path, fragment.physical_rows)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Errors of Lance about files, in one sentence."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, OSError | ValueError) and "Not found" in str(error):
                raise self._missing(error) from error
            # A damaged file can make Lance panic. Its PanicException is not an Exception.
            if isinstance(error, OSError | ValueError | RuntimeError) or type(error).__name__ == "PanicException":
                raise damaged(self.path, first_sentence(error)) from error
            raise

    def _missing(self, error: Exception) -> OSError:
        what = f"path: a file of {self.path} cannot be read: {first_sentence(error)}."
        return OSError(
            f"{what} Old versions are deleted: call refresh(). If that does not help, restore it from a copy."
        )

    # --- write ------------------------------------------------------------------------------------------------

    def newest_to_write(self, snapshot: Snapshot) -> Snapshot:
        """The newest version; merges small fragments first if there are many. A write starts with it."""
        snapshot = self.latest(snapshot)
        for target in merge_targets([segment.num_live for segment in snapshot.segments]):
            if self._compact(snapshot, target, threshold=0.1):
                return self._complete(self.latest(snapshot))
        return snapshot

    def append(self, snapshot: Snapshot, entries: Entries) -> Snapshot:
        table = to_table(entries)
        self._append(snapshot, table.schema, [table], entries.rows)
        return self.latest(snapshot)

    def write_all(self, tables: Iterator[pa.Table]) -> None:
        """Fill an index without rows, as one version."""
        first = next(tables, None)
        if first is not None:
            self._append(Snapshot(), first.schema, itertools.chain([first], tables))
        if first is not None and self._prepared is not None:
            for fragment in lance.dataset(self._uri).get_fragments():  # one after the other, to save memory
                self._complete(Snapshot(segments=(self._segment(fragment, {}),)))

    def _append(
        self, snapshot: Snapshot, schema: pa.Schema, tables: Iterable[pa.Table], rows: Tensor | None = None
    ) -> None:
        if snapshot.handle is None:
            self._commit(LanceOperation.Overwrite(schema, self._fragments(schema, tables, rows)), None)
        else:
            dataset = self._with_columns(snapshot.handle, schema)
            self._commit(LanceOperation.Append(self._fragments(schema, tables, rows)), dataset)

    def _with_columns(self, dataset: LanceDataset, schema: pa.Schema) -> LanceDataset:
        """Add new columns of metadata, which are null in the rows there are."""
        new = [field for field in schema if field.name not in dataset.schema.names]
        if new:
            dataset = lance.dataset(self._uri, version=dataset.version)
            dataset.add_columns(pa.schema(new))
        return dataset

    def _fragments(self, schema: pa.Schema, tables: Iterable[pa.Table], rows: Tensor | None) -> list:
        """Write data files and, if the rows are given, what is prepared of them."""
        batches = (batch for table in tables for batch in table.to_batches())
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        made = write_fragments(reader, self._uri, schema, mode="append" if self._exists() else "create")
        if rows is not None and self._prepared is not None:
            parts = rows.split([fragment.physical_rows for fragment in made])
            for fragment, part in zip(made, parts, strict=True):
                self._prepared.write(fragment.files[0].path, MemoryRows(part))
        return made

    def _complete(self, snapshot: Snapshot) -> Snapshot:
        """Write the prepared files that are missing."""
        for segment in snapshot.segments:
            if self._prepared is not None and isinstance(segment.vectors, MemoryRows):
                self._prepared.write(segment.key[1], segment.vectors)
        return snapshot

    def replace(self, snapshot: Snapshot, positions: np.ndarray, entries: Entries) -> Snapshot:
        table = to_table(entries)
        dataset = self._with_columns(snapshot.handle, table.schema)
        gone, changed = self._deletions(snapshot, positions)
        new = self._fragments(table.schema, [table], entries.rows)
        self._commit(LanceOperation.Update(gone, changed, new), dataset)
        return self.latest(snapshot)

    def delete(self, snapshot: Snapshot, positions: np.ndarray) -> Snapshot:
        gone, changed = self._deletions(snapshot, positions)
        self._commit(LanceOperation.Delete(changed, gone, "_sequence IN (...)"), snapshot.handle)
        return self.latest(snapshot)

    def _deletions(self, snapshot: Snapshot, positions: np.ndarray) -> tuple[list[int], list]:
        """Write deletion files. Returns the ids of fragments without live rows, and the others that changed."""
        gone, changed = [], []
        for segment, places in zip(snapshot.segments, snapshot.split(positions), strict=True):
            if len(places):
                fragment = snapshot.handle.get_fragment(segment.key[0])
                after = fragment.delete(_is_in(segment.sequence[places]))
                if after is None:
                    gone.append(fragment.fragment_id)
                else:
                    changed.append(after)
        return gone, changed

    def _commit(self, operation: Any, dataset: LanceDataset | None) -> None:
        self._sync()
        version = None if dataset is None else dataset.version
        LanceDataset.commit(self._uri, operation, read_version=version, max_retries=0)
        self._sync()

    def compact(self, snapshot: Snapshot, target: int) -> Snapshot:
        """Merge the fragments with fewer rows than `target`, and drop deleted rows and old versions."""
        if snapshot.handle is None:
            return snapshot
        self._compact(snapshot, target, threshold=0.0)
        return self._complete(self.latest(snapshot))

    def _compact(self, snapshot: Snapshot, target: int, threshold: float) -> bool:
        # An object of its own, because Lance moves it to the new version. Searches still read that of the snapshot.
        dataset = lance.dataset(self._uri, version=snapshot.version)
        plan = Compaction.plan(
            dataset, {"target_rows_per_fragment": target, "materialize_deletions_threshold": threshold}
        )
        if not plan.num_tasks():
            return False
        done = [task.execute(dataset) for task in plan.tasks]
        self._sync()
        Compaction.commit(dataset, done)
        self._sync()
        lance.dataset(self._uri).cleanup_old_versions(KEPT)
        remove_unused(self.path, Path(self._uri, "data"))
        return True

    def _exists(self) -> bool:
        return any(Path(self._uri, "_versions").glob("*.manifest"))

    def _sync(self) -> None:
        """Wait for the disk to have the files that are new since the last call. Files never change."""
        if not self.sync:
            return
        names = {path for path in Path(self._uri).rglob("*")}
        new = {path for path in names - self._synced if path.is_file()}
        sync(sorted(new | {path.parent for path in new} | {Path(self._uri), self.path}))
        self._synced = names


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """The lock that every writer of the index at `path` takes."""
    lock = FileLock(path / "write.lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise TimeoutError(
            f"path: another writer has been at {path} for {LOCK_SECONDS} s. Try again later."
        ) from error
    except PermissionError as error:
        raise PermissionError(f"path: {path} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.release()


def first_sentence(error: BaseException | str) -> str:
    """The message of a Lance error without the place in its source."""
    return str(error).splitlines()[0].split(", /")[0].rstrip(".")


def _is_in(sequence: np.ndarray) -> str:
    return f"_sequence IN ({', '.join(map(str, sequence.tolist()))})"


def _int64(table: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    return table.column(name).to_numpy().astype(np.int64, copy=False)
