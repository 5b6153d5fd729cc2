"""DissimilarityIndex: exact search in a gallery with the score that the head was trained with."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..head import DissimilarityHead, check_scored_by_weights
from ..provenance import as_provenance, check_same_model
from . import scan
from .arguments import INT_IDS, MAX_ID, STR_IDS, as_ids, as_metadata, check_k, check_threshold, transformed
from .candidates import check_fuse, grouped, matching, numbered
from .entries import Entries
from .lance_store import LanceStore
from .memory_store import MemoryStore
from .preparation import CLUSTERS, CODES, preparation_for
from .ranks import ranks
from .results import (
    RangeResult,
    SearchResult,
    StoredRows,
    like,
    present_ids,
    range_result,
    search_result,
    stored_rows,
)
from .segments import Snapshot
from .settings import BackboneWeights, Settings, new_folder, read_backbone, read_settings, write_settings


class DissimilarityIndex:
    """An exact index: a search scores every stored row for every query and keeps the k best.

    ``DissimilarityIndex(head)`` is an index in memory, on the head's device; `create` and `open` make and open one on
    disk. An index stores head.transform(embeddings) in the head's dtype, so its scores are those of
    ``head(query, gallery)``; rows in half precision are ranked by float32 scores.

    Ids are yours, int64 or str, each once. Embeddings, ids and results are tensors, NumPy arrays or lists: a NumPy
    query gives NumPy results, any other gives tensors.

    Any number of threads may search while one writes. A write takes a lock, across threads and processes; another
    writer waits ten seconds and then raises TimeoutError. Searches see the version of the last write through this
    object, or of the last `refresh`, and never half of a write.

    Args:
        quantized: keep 8-bit codes of the rows as well (one byte per value). A search then scans the codes and
            computes exact scores only for rows that the error bounds of the codes cannot exclude. The result is the
            same; it is several times as fast if few rows score close to the best
            (`dissim_kernels.quantize_references`).
        clustered: keep clusters of the rows of segments of 10,000 rows or more as well. A search then omits clusters
            that cannot have one of the best rows. The result is the same; most rows are never read if the embeddings
            are clustered (`dissim_kernels.cluster_references`). Not together with quantized: ValueError.
        provenance: where the embeddings come from, as in ``Trained.provenance`` (JSON). `add`, `update` and `search`
            take the provenance of their embeddings, too, and raise ValueError if its "model" is another.
        backbone: the network that makes the embeddings, to be stored beside the index.

    An index on disk that was opened with quantized or clustered stores the codes or clusters of 10,000 rows or more
    when they are written, and maps them when it is opened. The first search computes those that are not stored;
    `optimize` stores them.

    Memory: the rows, [M, D]. A search computes N M D terms ``|q_d - r_d|`` and stores no N x M matrix.
    """

    def __init__(
        self,
        head: DissimilarityHead,
        *,
        quantized: bool = False,
        clustered: bool = False,
        provenance: dict[str, Any] | None = None,
        backbone: BackboneWeights | None = None,
    ) -> None:
        check_scored_by_weights("head", head)
        self.head, self._preparation = head, preparation_for(quantized, clustered)
        self.provenance = None if provenance is None else as_provenance(provenance)
        self._backbone = backbone
        self._store: MemoryStore | LanceStore = MemoryStore()
        self._snapshot, self._publishing = Snapshot(), threading.Lock()

    # --- on disk ----------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        head: DissimilarityHead,
        *,
        quantized: bool = False,
        clustered: bool = False,
        provenance: dict[str, Any] | None = None,
        backbone: BackboneWeights | None = None,
        sync: bool = False,
    ) -> DissimilarityIndex:
        """Make an index without rows in the new folder `path`, and open it on the head's device.

        sync: see `open`. Raises FileExistsError if `path` exists.
        """
        preparation_for(quantized, clustered)
        facts = None if provenance is None else as_provenance(provenance)
        with new_folder(Path(path)) as folder:
            write_settings(folder, Settings(head, facts), backbone)
        return cls.open(path, device=head.weight.device, quantized=quantized, clustered=clustered, sync=sync)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        quantized: bool = False,
        clustered: bool = False,
        verify: bool = False,
        in_memory: bool = True,
        sync: bool = False,
    ) -> DissimilarityIndex:
        """Open an index that `create` or `save` made. Nothing in the folder can run code.

        Args:
            device: where the rows are, and where searches run.
            verify: call `verify` first.
            in_memory: read the rows now. If False, every search reads them from the disk, in parts of 64 MiB, so the
                index may be larger than the memory; only ids and sequence numbers are in memory. False cannot be
                combined with `quantized` or `clustered`, whose searches read single rows.
            sync: a write returns after the disk has it (fsync), so it survives a power loss. Without sync, a write
                that has returned is kept if the process dies, but may be lost if the machine loses power.
        """
        preparation = preparation_for(quantized, clustered)
        if preparation is not None and not in_memory:
            raise ValueError(f"{preparation.option}: expected False with in_memory=False: it is for rows in memory.")
        folder = Path(path)
        settings = read_settings(folder)
        try:
            head = settings.head.to(device)
        except (RuntimeError, AssertionError) as error:
            what = str(error).splitlines()[0]
            raise ValueError(f"device: expected a device of this machine, got {device}: {what}") from error
        index = cls(head, quantized=quantized, clustered=clustered, provenance=settings.provenance)
        index._store = LanceStore(folder, head.weight, preparation, in_memory=in_memory, sync=sync)
        index._snapshot = index._store.latest(Snapshot())
        if verify:
            index.verify()
        return index

    def save(self, path: str | Path) -> None:
        """Write the rows of this version, head, provenance and backbone into a new folder, atomically."""
        snapshot = self._snapshot
        with new_folder(Path(path)) as folder:
            write_settings(folder, Settings(self.head, self.provenance), self.backbone)
            LanceStore(folder, self.head.weight.cpu(), self._preparation).write_all(self._store.tables(snapshot))

    def refresh(self) -> None:
        """Move to the newest version, which another process or object may have written.

        Raises OSError, as every write does, if another index is now at the path.
        """
        self._publish(self._store.latest(self._snapshot))

    def verify(self) -> None:
        """Read every row of this version, stored codes and clusters from the disk.

        Raises ValueError if one differs from its checksum.
        """
        self._store.verify(self._snapshot)

    def __reduce__(self) -> Any:
        """An index on disk is pickled as its path, so that it can be passed to a spawned process."""
        if not isinstance(self._store, LanceStore):
            raise TypeError("index: expected an index on disk to pickle, got one in memory. Use save() and open().")
        return _reopen, (*self._store.arguments, self.quantized, self.clustered)

    # --- write ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def add(
        self,
        embeddings: Any,
        ids: Any = None,
        metadata: Mapping[str, Sequence[Any]] | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
    ) -> Any:
        """Append embeddings [B, D]. Returns their ids.

        Args:
            ids: int64 or str [B], which the index does not have yet. Without ids, they are the numbers after the
                largest in the index, or from 0 on if it has none or only negative ones. The number of a removed row
                may be given again.
            metadata: columns {name: B values} of bool, numbers, str or times, for `filter` and `group_by`. Rows have
                null in columns that are not given for them. A column keeps the type of its first values: numbers,
                text and bools are not converted to each other. Filters compare times in nanoseconds; results have
                microseconds.
        """
        self._check_provenance(provenance)
        rows = self._prepare("embeddings", embeddings)
        with self._store.writing():
            snapshot = self._store.newest_to_write(self._snapshot)
            known = self._new_ids(ids, len(rows), snapshot)
            columns = as_metadata(metadata, len(rows), snapshot.schema)
            sequence = snapshot.next_sequence + np.arange(len(rows))
            if len(rows):
                self._publish(self._store.append(snapshot, Entries(known, sequence, rows, columns)))
        return present_ids(known, embeddings)

    @torch.no_grad()
    def update(
        self,
        embeddings: Any,
        ids: Any,
        metadata: Mapping[str, Sequence[Any]] | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace the embeddings [B, D] of `ids`, and the metadata columns that are given.

        Rows keep their place in the order of ties. Raises KeyError for an unknown id; nothing is replaced then.
        """
        self._check_provenance(provenance)
        rows = self._prepare("embeddings", embeddings)
        with self._store.writing():
            snapshot = self._store.newest_to_write(self._snapshot)
            positions = self._known(snapshot, ids, len(rows))
            if not len(rows):
                return
            before = self._store.read(snapshot, positions)
            columns = before.metadata
            given = as_metadata(metadata, len(rows), snapshot.schema)
            for name, values in zip(given.column_names, given.columns, strict=True):
                at = columns.schema.get_field_index(name)
                columns = columns.append_column(name, values) if at < 0 else columns.set_column(at, name, values)
            order = before.sequence.argsort()
            entries = Entries(
                before.ids.take(pa.array(order)),
                before.sequence[order],
                rows[torch.from_numpy(order).to(rows.device)],
                columns.take(pa.array(order)),
            )
            self._publish(self._store.replace(snapshot, positions, entries))

    def remove(self, ids: Any) -> None:
        """Delete rows. Raises KeyError for an unknown id; nothing is deleted then."""
        with self._store.writing():
            snapshot = self._store.newest_to_write(self._snapshot)
            positions = self._known(snapshot, ids)
            if len(positions):
                self._publish(self._store.delete(snapshot, positions))

    def optimize(self) -> None:
        """Merge all small segments and drop deleted rows. Also deletes versions older than an hour.

        With quantized or clustered, also store the codes or clusters that are not stored yet.

        Writes merge small segments only if there are many. Call this after many writes.
        """
        with self._store.writing():
            self._publish(self._store.compact(self._store.latest(self._snapshot), 1 << 20))

    # --- read -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._snapshot)

    @property
    def version(self) -> int:
        """The number of the version that searches see. Every write makes a larger one."""
        return self._snapshot.version

    @property
    def columns(self) -> dict[str, str]:
        """The Arrow types of "id" and of the metadata columns, by name. Empty before the first rows are added."""
        schema = self._snapshot.schema
        return {} if schema is None else {field.name: str(field.type) for field in schema}

    def ids(self, filter: str | Any | None = None, *, start: int = 0, count: int | None = None) -> Any:
        """`count` ids from number `start` on, in the order in which they were added; filter as in `search`."""
        if start < 0 or (count is not None and count < 0):
            raise ValueError(f"start, count: expected numbers of at least 0, got {start} and {count}.")
        snapshot = self._snapshot
        chosen = matching(self._store, snapshot, filter)
        if chosen is None:
            chosen = snapshot.live.nonzero()[0]
        in_order = chosen[snapshot.sequence(chosen).argsort()][start:][:count]
        return present_ids(snapshot.ids.take(pa.array(in_order)), None)

    def contains(self, ids: Any) -> np.ndarray:
        """Which of these ids, each given once, the index has: bool [B]."""
        snapshot = self._snapshot
        if snapshot.schema is None:
            return np.zeros(len(as_ids(ids)), bool)
        return snapshot.locate(as_ids(ids, None, snapshot.schema.field("id").type)) >= 0

    @property
    def quantized(self) -> bool:
        """Whether searches scan 8-bit codes."""
        return self._preparation is CODES

    @property
    def clustered(self) -> bool:
        """Whether searches use clusters."""
        return self._preparation is CLUSTERS

    @property
    def backbone(self) -> BackboneWeights | None:
        """The network that makes the embeddings, if it was stored. Reads its file."""
        if isinstance(self._store, MemoryStore):
            return self._backbone
        self._store.check_not_replaced()
        return read_backbone(self._store.path)

    def get(self, ids: Any) -> StoredRows:
        """The stored rows of these ids, in this order. Raises KeyError for an unknown id."""
        snapshot = self._snapshot
        found = self._known(snapshot, ids)
        if not len(found):
            empty = (snapshot.schema or pa.schema([("id", INT_IDS)])).empty_table()
            names, metadata = empty.column("id").combine_chunks(), empty.drop_columns(["id"])
            return stored_rows(Entries(names, found, self.head.weight.detach()[None][:0], metadata), ids)
        return stored_rows(self._store.read(snapshot, found), ids)

    @torch.no_grad()
    def search(
        self,
        query: Any,
        k: int,
        *,
        filter: str | Any | None = None,
        group_by: str | None = None,
        fuse: str = "max",
        provenance: Mapping[str, Any] | None = None,
    ) -> SearchResult:
        """The k best rows for each query embedding [N, D]. Equal scores are in the order in which ids were added.

        Plain torch: ``scores, rows = head(query, gallery).topk(k); ids = ids[rows]``.

        Args:
            filter: an SQL condition on id and metadata (``"camera = 2 AND label != 'unknown'"``), or a list of ids
                (unknown ones are ignored). Only rows that satisfy it are scored. If they are a sixteenth of a
                segment or more, their codes or clusters are used. ValueError if text is left after the condition,
                or if it has more than 100 of the operators ``+ - * / % || ::`` and of comparisons after another, as
                in ``a = b = c``.
            group_by: a metadata column. Scores of rows with the same value become one score, and the result has the
                k best values as its ids. Rows without a value are no candidates. Every candidate is scored.
            fuse: how scores of a group become one: max, mean, min or median.
        """
        self._check_provenance(provenance)
        check_k(k)
        snapshot, rows = self._snapshot, self._query(query)
        if group_by is None:
            chosen = matching(self._store, snapshot, filter)
            best, names = scan.top_k(rows, snapshot, k, chosen, self._preparation), snapshot.ids
        else:
            check_fuse(fuse)
            candidates, names = numbered([grouped(self._store, snapshot, group_by, filter)])
            best = scan.top_groups(rows, snapshot, k, candidates, fuse)
        return search_result(best, names, k, query, group_by or "id")

    @torch.no_grad()
    def range_search(self, query: Any, threshold: float, *, filter: str | Any | None = None) -> RangeResult:
        """The rows that score `threshold` or more for each query embedding [N, D]; filter as in `search`."""
        check_threshold(threshold)
        snapshot, rows = self._snapshot, self._query(query)
        found = scan.above(rows, snapshot, threshold, matching(self._store, snapshot, filter))
        return range_result(*scan.best_first(found, len(rows.rows)), snapshot.ids, query)

    @torch.no_grad()
    def ranks(self, query: Any, offsets: Any, ids: Any) -> Any:
        """How many rows come before each listed row, int64 [P]; 0 is the best. Ties are ordered as in `search`.

        The rows listed for query n are ids[offsets[n]:offsets[n + 1]], as in a `RangeResult`; offsets int64 [N + 1].
        Average precision, CMC and every other rank metric follow from the ranks of each query's matches. All rows are
        candidates. To exclude rows for a query, list them as well, and subtract from each rank the number of excluded
        rows before it.

        Cost: that of a search, and for each listed row a comparison with every row. Memory: the listed rows, [P, D].
        Raises KeyError for an unknown id.
        """
        snapshot, rows = self._snapshot, self._query(query)
        kind = None if snapshot.schema is None else snapshot.schema.field("id").type
        found = ranks(lambda function, *arguments: [function(snapshot, *arguments)], rows, offsets, ids, kind)
        return like(found, query)

    # --- parts ------------------------------------------------------------------------------------------------

    def _publish(self, snapshot: Snapshot) -> None:
        """Let searches see a version, unless another thread has published a newer one."""
        with self._publishing:
            if snapshot.version > self._snapshot.version:
                self._snapshot = snapshot

    def _prepare(self, name: str, embeddings: Any) -> Tensor:
        return transformed(self.head, name, embeddings)

    def _query(self, query: Any) -> scan.Query:
        return scan.as_query(self.head, query)

    def _check_provenance(self, provenance: Mapping[str, Any] | None) -> None:
        check_same_model(self.provenance, provenance, argument="provenance", source="the index")

    def _new_ids(self, ids: Any, count: int, snapshot: Snapshot) -> pa.Array:
        kind = None if snapshot.schema is None else snapshot.schema.field("id").type
        if ids is None:
            if kind == STR_IDS:
                raise ValueError(
                    "ids: expected str, as in this index, got None. Pass them: only int64 ids may be omitted."
                )
            first = max(snapshot.max_id + 1, 0)
            if first + count - 1 > MAX_ID:
                raise ValueError(
                    f"ids: expected them with {snapshot.max_id} in the index, got None. Pass them: int64 cannot hold"
                    f" {count} larger ones."
                )
            return pa.array(range(first, first + count), INT_IDS)
        new = as_ids(ids, count, kind)
        if kind is not None:
            known = snapshot.locate(new) >= 0
            if known.any():
                first = new[int(known.nonzero()[0][0])].as_py()
                raise ValueError(f"ids: expected new ids, got {first!r}, which the index has. Use update() for it.")
        return new

    def _known(self, snapshot: Snapshot, ids: Any, count: int | None = None) -> np.ndarray:
        kind = None if snapshot.schema is None else snapshot.schema.field("id").type
        wanted = as_ids(ids, count, kind)
        positions = snapshot.locate(wanted)
        if (positions < 0).any():
            first = wanted[int((positions < 0).nonzero()[0][0])].as_py()
            raise KeyError(f"ids: expected ids of the index, got {first!r}")
        return positions


def _reopen(
    path: Path, device: torch.device, in_memory: bool, sync: bool, quantized: bool, clustered: bool
) -> DissimilarityIndex:
    return DissimilarityIndex.open(
        path, device=device, quantized=quantized, clustered=clustered, in_memory=in_memory, sync=sync
    )
