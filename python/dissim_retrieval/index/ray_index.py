"""RayDissimilarityIndex: an index on disk whose rows are in the memory of several processes or machines."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from ..extras import install_extra
from ..provenance import check_same_model
from . import scan
from .arguments import check_k, check_threshold
from .candidates import check_fuse, numbered
from .lance_store import LanceStore
from .preparation import preparation_for
from .ranks import ranks
from .results import RangeResult, SearchResult, like, range_result, search_result
from .settings import Settings, read_settings
from .shard import Shard, Share, fingerprint

#: How often a call is repeated whose actor died.
RETRIES = 3


class State(NamedTuple):
    """A version, and which shard has which fragments of it."""

    version: int
    shares: list[Share]
    rows: int
    id_type: pa.DataType

    @property
    def busy(self) -> list[int]:
        """The numbers of the shards that have rows."""
        return [number for number, share in enumerate(self.shares) if share.fragments]


class RayDissimilarityIndex:
    """Searches an index on disk with its segments spread over actors of Ray. `open` makes one.

    Every search asks all shards and merges their answers. The result is that of `DissimilarityIndex`, bit for bit on
    machines of the same instruction set, with the same order of ties. It is complete, or the search raises an error
    that names the shard: an actor that dies is started again and repeats the call, up to three times.

    It only reads: write with `DissimilarityIndex`, then `refresh`. Any number of threads may search.
    """

    def __init__(self, path: Path, settings: Settings, actors: list[Any], timeout: float | None) -> None:
        self.head, self.provenance = settings
        self._ray, self._actors, self._timeout = _ray(), actors, timeout
        self._store = LanceStore(path, self.head.weight)
        self._state, self._refreshing = State(0, [Share(0, (), "")] * len(actors), 0, pa.int64()), threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        shards: int,
        num_cpus: float = 1,
        quantized: bool = False,
        clustered: bool = False,
        timeout: float | None = 600,
    ) -> RayDissimilarityIndex:
        """Start one actor for each shard and read the rows.

        To choose Ray's settings, call `ray.init()` first. If this call starts Ray, Ray's usage statistics are off.
        Every node must have dissim-kernels, and must see the same files at `path`.

        Args:
            shards: how many. Segments, of up to 1,048,576 rows, are spread evenly by rows and not split, so more
                shards than segments are of no use.
            num_cpus: cores that Ray reserves for each shard; rounded down, but at least 1, the threads of its
                searches.
            quantized, clustered: as in `DissimilarityIndex.open`.
            timeout: seconds that one call waits for the shards, which includes reading rows; None for no limit.
                TimeoutError names those that did not answer.
        """
        if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
            raise ValueError(f"shards: expected an integer of at least 1, got {shards!r}.")
        if not num_cpus > 0:
            raise ValueError(f"num_cpus: expected a number above 0, got {num_cpus!r}.")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout: expected seconds above 0, or None, got {timeout!r}.")
        preparation = preparation_for(quantized, clustered)
        ray, folder = _ray(), Path(path).resolve()
        settings = read_settings(folder)
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            with warnings.catch_warnings():  # of Lance about forks, which here only start another program
                warnings.filterwarnings("ignore", "lance is not fork-safe")
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        cores = ray.cluster_resources().get("CPU", 0)
        if shards * num_cpus > cores:
            raise ValueError(
                f"shards: expected at most {int(cores / num_cpus)} with num_cpus={num_cpus}, because Ray has "
                f"{cores:g} cores, got {shards}. Lower num_cpus, or add nodes."
            )
        start = ray.remote(
            num_cpus=num_cpus, max_restarts=-1, max_task_retries=RETRIES, scheduling_strategy="SPREAD"
        )(Shard).remote
        options = folder, settings.head.weight.detach(), preparation, max(1, int(num_cpus))
        index = cls(folder, settings, [start(_name(n, shards), *options) for n in range(shards)], timeout)
        try:
            index.refresh()
        except BaseException:
            index.close()
            raise
        return index

    def close(self) -> None:
        """End the actors. Ray itself keeps running: see `ray.shutdown`."""
        actors, self._actors = self._actors, []
        for actor in actors if self._ray.is_initialized() else ():
            self._ray.kill(actor)

    def refresh(self) -> None:
        """Move to the newest version. Searches use the old version until every shard has read the new one."""
        with self._refreshing:
            state = self._newest()
            if state.version != self._state.version:
                self._ask(state, "open")
                self._state = state
                self._ask(state, "close_before")

    def __len__(self) -> int:
        return self._state.rows

    @property
    def version(self) -> int:
        """The number of the version that searches see."""
        return self._state.version

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
        """As `DissimilarityIndex.search`. With `group_by`, the scores of all candidates are sent here."""
        check_same_model(self.provenance, provenance, argument="provenance", source="the index")
        check_k(k)
        state, rows = self._state, scan.as_query(self.head, query)
        if group_by is None:
            parts, names = _joined(self._ask(state, "top_k", rows, k, filter), state.id_type)
            best = scan.merged([scan.nothing(rows), *parts], k)
        else:
            check_fuse(fuse)
            best, names = self._groups(state, rows, k, filter, group_by, fuse)
        return search_result(best, names, k, query, group_by or "id")

    def range_search(self, query: Any, threshold: float, *, filter: str | Any | None = None) -> RangeResult:
        """As `DissimilarityIndex.range_search`."""
        check_threshold(threshold)
        state, rows = self._state, scan.as_query(self.head, query)
        parts, names = _joined(self._ask(state, "above", rows, threshold, filter), state.id_type)
        found = scan.joined_pairs([scan.no_pairs(rows), *parts])
        return range_result(*scan.best_first(found, len(rows.rows)), names, query)

    def ranks(self, query: Any, offsets: Any, ids: Any) -> Any:
        """As `DissimilarityIndex.ranks`."""
        state, rows = self._state, scan.as_query(self.head, query)

        def ask(function: Any, *arguments: Any) -> list[Any]:
            return self._ask(state, "count", function, *arguments)

        return like(ranks(ask, rows, offsets, ids, state.id_type if state.version else None), query)

    def _groups(
        self, state: State, rows: scan.Query, k: int, filter: Any, group_by: str, fuse: str
    ) -> tuple[scan.Best, pa.Array]:
        parts = self._ask(state, "grouped", group_by, filter)
        if not parts:
            return scan.nothing(rows), pa.array([], state.id_type)
        candidates, names = numbered(parts)
        best = []
        for some in rows.split(candidates.queries_at_a_time()):
            scores = self._ask(state, "scores", some, each=[part.sequence for part in parts])
            blocks = [block for part in scores for block in part]
            best.append(scan.best_groups(some, blocks, k, candidates, fuse))
        return scan.Best(*map(torch.cat, zip(*best, strict=True))), names

    # --- shards -----------------------------------------------------------------------------------------------

    def _newest(self) -> State:
        """The newest version. Fragments stay where they are; new ones go to the shard with the fewest rows."""
        before, dataset = self._state, self._store.dataset()
        if dataset is None and before.version:
            raise FileNotFoundError(f"path: expected an index, got {self._store.path}, where there are no rows.")
        if dataset is None or dataset.version <= before.version:
            return before
        rows = {part.fragment_id: part.metadata.num_rows for part in dataset.get_fragments()}
        shares = [[number for number in share.fragments if number in rows] for share in before.shares]
        sizes = [sum(rows[number] for number in share) for share in shares]
        for number in sorted(set(rows).difference(*shares), key=lambda number: (-rows[number], number)):
            smallest = sizes.index(min(sizes))
            shares[smallest].append(number)
            sizes[smallest] += rows[number]
        mark = fingerprint(dataset)
        parts = [Share(dataset.version, tuple(share), mark) for share in shares]
        return State(dataset.version, parts, sum(sizes), dataset.schema.field("id").type)

    def _ask(self, state: State, name: str, *arguments: Any, each: list[Any] | None = None) -> list[Any]:
        """The answers of all shards that have rows. each: one more argument, a list with that of every such shard."""
        if not self._actors:
            raise RuntimeError("index: expected an open index, got one that was closed. Open it again.")
        ray, busy = self._ray, state.busy
        if each is None:
            shared = ray.put(arguments)
            every = [shared] * len(busy)
        else:
            every = [(*arguments, one) for one in each]
        calls = [
            self._actors[number].call.remote(state.shares[number], name, of_shard)
            for number, of_shard in zip(busy, every, strict=True)
        ]
        late = ray.wait(calls, num_returns=len(calls), timeout=self._timeout)[1] if calls else []
        if late:
            names = ", ".join(self._name(number) for number, call in zip(busy, calls, strict=True) if call in late)
            raise TimeoutError(
                f"shards: expected all answers in {self._timeout} s, got none of {names}. Raise timeout, or see "
                "`ray status` for whether every actor has a place to run."
            )
        return [self._answer(number, call) for number, call in zip(busy, calls, strict=True)]

    def _answer(self, number: int, call: Any) -> Any:
        errors = import_module("ray.exceptions")
        try:
            return self._ray.get(call, timeout=self._timeout)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            what = str(error).strip().splitlines()[0].rstrip(".")
            raise RuntimeError(
                f"shards: {self._name(number)} gave no answer in {RETRIES + 1} tries: {what}. Search again, or open "
                "the index again."
            ) from error

    def _name(self, number: int) -> str:
        return _name(number, len(self._state.shares))


def _name(number: int, shards: int) -> str:
    return f"shard {number + 1} of {shards}"


def _joined(parts: list[Any], id_type: pa.DataType) -> tuple[list[Any], pa.Array]:
    """The parts with positions among the ids of all parts, and these ids."""
    moved, first = [], 0
    for found, ids in parts:
        moved.append(found._replace(positions=found.positions + first))
        first += len(ids)
    return moved, pa.concat_arrays([pa.array([], id_type), *(ids for _, ids in parts)])


def _ray() -> Any:
    try:
        return import_module("ray")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"no package 'ray', which shards need. {install_extra('ray')}") from error
