"""Work on rows in spawned processes, by torch's DataLoader."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import current_process, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
#: Fewer rows than this are faster without processes, which take seconds to start.
MIN_ROWS = 1024


def default_workers(plan: Sequence[Tensor]) -> int:
    """One process per core, at most 4; none for few rows, and none where Python allows none (in a daemon)."""
    rows = len(plan) * len(plan[0]) if len(plan) else 0
    if rows < MIN_ROWS or current_process().daemon:
        return 0
    return min(4, len(os.sched_getaffinity(0)))


def map_rows(function: Callable[[list[int]], T], plan: Sequence[Tensor], workers: int) -> Iterator[T]:
    """function(rows.tolist()) for each rows of the plan, in order, computed ahead by `workers` processes.

    `function` is pickled once per process. A ValueError or OSError of a process is raised here as it is. The
    processes end with the iterator, and with this process however it ends. torch's random state is not used.
    """
    lists = (rows.tolist() for rows in plan)
    if workers == 0:
        yield from map(function, lists)
        return
    loader = DataLoader(
        _Rows(function),
        batch_size=None,  # an item is what `function` returns
        sampler=lists,  # type: ignore[arg-type]
        num_workers=workers,
        multiprocessing_context=_Context(),
        collate_fn=_unchanged,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    results = iter(loader)
    end: Callable[[], None] = results._shutdown_workers  # type: ignore[attr-defined]
    atexit.register(end)  # before Python's own exit kills processes that still start, which torch reports as an error
    try:
        for result in results:
            if isinstance(result, Exception):
                raise result
            yield result
    finally:  # not by `results.__del__`, since a traceback keeps it alive
        atexit.unregister(end)
        end()


class _Rows(Dataset):
    """A function as a data set. It returns errors, because to one that is raised torch adds a traceback as text."""

    def __init__(self, function: Callable[[list[int]], Any]) -> None:
        self.function = function

    def __getitem__(self, rows: list[int]) -> Any:
        try:
            return self.function(rows)
        except (ValueError, OSError) as error:
            return error


def _unchanged(result: T) -> T:
    return result


def _end_with_parent(worker: int) -> None:
    """End this process when its parent ends. torch's own check misses a parent that was killed while this started."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Process(SpawnProcess):
    """A spawned process that does not run the caller's script, and that Ctrl-C does not reach.

    Python runs the script again in a spawned process, in case the work is defined there. Ours never is, and a script
    without `if __name__ == "__main__"` would start a second training. Python finds the script in `__main__`, which is
    replaced while the process starts. On Ctrl-C the parent ends its workers.
    """

    @staticmethod
    def _Popen(process_obj):  # type: ignore[no-untyped-def]
        main = sys.modules["__main__"]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new process inherits the mask
        sys.modules["__main__"] = ModuleType("__main__")  # has no file that could be run
        try:
            return SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined]
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Process
