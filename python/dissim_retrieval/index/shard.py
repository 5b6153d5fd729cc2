"""A shard: some fragments of an index on disk, in an actor of Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from lance import LanceDataset
from torch import Tensor

from . import scan
from .candidates import Grouped, grouped, matching
from .lance_store import LanceStore
from .preparation import Preparation
from .segments import Snapshot


class Share(NamedTuple):
    """What a shard reads: fragments of one version. fingerprint: of that version, where the index was opened."""

    version: int
    fragments: tuple[int, ...]
    fingerprint: str


def fingerprint(dataset: LanceDataset) -> str:
    """A hash of the names of all data files and deletion files of a version. Data files have random names."""
    listed = [fragment.metadata.to_json() for fragment in dataset.get_fragments()]
    return hashlib.sha256(json.dumps(listed, sort_keys=True, default=str).encode()).hexdigest()


class Shard:
    """Answers what `RayDissimilarityIndex` asks. The first call reads the rows, also after a restart."""

    def __init__(self, name: str, path: Path, weight: Tensor, preparation: Preparation | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self._name, self._preparation = name, preparation
        self._store = LanceStore(path, weight, preparation)
        self._versions: dict[int, Snapshot] = {}

    def call(self, share: Share, name: str, arguments: tuple) -> Any:
        """The method `name` with these arguments, at the version of the share."""
        try:
            if share.version not in self._versions:
                self._versions[share.version] = self._read(share)
            return getattr(self, name)(self._versions[share.version], *arguments)
        except (OSError, RuntimeError, MemoryError) as error:
            kind = OSError if isinstance(error, OSError) else RuntimeError
            raise kind(f"shards: {self._name} cannot answer, {_node()}: {error}") from error

    def _read(self, share: Share) -> Snapshot:
        """Fragments that another open version has are shared with it."""
        before = self._versions[max(self._versions)] if self._versions else Snapshot()
        path = self._store.path
        try:
            dataset = self._store.dataset(share.version)
            if dataset is None:
                raise FileNotFoundError(f"path: expected an index, got {path}, where there are no rows.")
            if fingerprint(dataset) != share.fingerprint:
                raise OSError(f"path: {path} is another index here. Every node must see the same files.")
            return self._store.snapshot(dataset, before, set(share.fragments))
        except ValueError as error:  # a damaged file; of a search, a ValueError is about its arguments
            raise OSError(str(error)) from error

    def open(self, snapshot: Snapshot) -> None:
        """Only reads the version."""

    def close_before(self, snapshot: Snapshot) -> None:
        """Forget the versions before this one."""
        self._versions = {version: other for version, other in self._versions.items() if version >= snapshot.version}

    def top_k(self, snapshot: Snapshot, query: scan.Query, k: int, filter: Any) -> tuple[scan.Best, pa.Array]:
        """The best rows of the shard, and their ids; `positions` are places among these ids."""
        chosen = matching(self._store, snapshot, filter)
        return _with_ids(scan.top_k(query, snapshot, k, chosen, self._preparation), snapshot)

    def above(
        self, snapshot: Snapshot, query: scan.Query, threshold: float, filter: Any
    ) -> tuple[scan.Pairs, pa.Array]:
        """The rows of the shard that score `threshold` or more, in the same form."""
        return _with_ids(scan.above(query, snapshot, threshold, matching(self._store, snapshot, filter)), snapshot)

    def grouped(self, snapshot: Snapshot, column: str, filter: Any) -> Grouped:
        """The shard's candidates of a grouped search."""
        return grouped(self._store, snapshot, column, filter)

    def scores(self, snapshot: Snapshot, query: scan.Query, sequence: np.ndarray) -> list[scan.Scores]:
        """The scores of these rows of the shard."""
        return scan.candidate_scores(query, snapshot, snapshot.positions(sequence))

    def count(self, snapshot: Snapshot, function: Callable, *arguments: Any) -> Any:
        """What a function of `ranks` gives for the shard."""
        return function(snapshot, *arguments)


def _with_ids(found: Any, snapshot: Snapshot) -> tuple[Any, pa.Array]:
    ids = snapshot.ids.take(pa.array(found.positions.flatten().numpy()))
    return found._replace(positions=torch.arange(len(ids)).view_as(found.positions)), ids


def _node() -> str:
    import ray

    return f"on node {ray.util.get_node_ip_address()}"
