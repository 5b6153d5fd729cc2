"""Compute results in several processes."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def results(
    tasks: Iterable[Task], compute: Callable[[Task], Result], processes: int
) -> Iterator[tuple[Task, Result]]:
    """Each task with its result, as the results come. A task is taken when a process is free for it.

    With more than one process, each task has a forked one. So it has the caller's data without copies of them, and
    the caller must not have used several threads or autograd. Raises RuntimeError if a process ends without a result.
    """
    if processes == 1:
        for task in tasks:
            yield task, compute(task)
        return
    waiting = iter(tasks)
    running: dict[Connection, tuple[Task, BaseProcess]] = {}
    try:
        while True:
            while len(running) < processes and (task := next(waiting, None)) is not None:
                receiver, process = _start(task, compute)
                running[receiver] = task, process
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                task, process = running.pop(ready)
                yield task, _received(ready, task, process)
    finally:
        for _, process in running.values():
            process.terminate()


def _start(task: Task, compute: Callable[[Task], Result]) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, task, compute), daemon=True)
    with warnings.catch_warnings():
        # Data sets may have imported lance, which warns of every fork. A task computes and does not use lance.
        warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)
        process.start()
    sender.close()
    return receiver, process


def _send(sender: Connection, task: Task, compute: Callable[[Task], Result]) -> None:
    sender.send(compute(task))


def _received(receiver: Connection, task: Task, process: BaseProcess):
    try:
        with receiver:
            return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{task}: its process ended without a result, with exit code {process.exitcode}. Its error is above."
        ) from None
    finally:
        process.join()
