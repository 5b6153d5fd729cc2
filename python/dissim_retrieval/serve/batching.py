"""Concurrent requests, answered in batches: one scan of the gallery for many queries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True, eq=False)
class _Waiting:
    request: object
    key: Hashable
    answer: asyncio.Future


class Batcher(Generic[Request, Answer]):
    """Answers requests in batches, which run one after the other in a thread.

    A request that finds the thread idle runs at once. Those that arrive during a batch wait for its end. The next
    batch is the oldest of them with all others of the same key, so that none waits forever. A request whose caller
    was canceled is dropped. If a batch raises, its halves run once more, and so on, so that an error reaches only the
    request that causes it.

    Args:
        run: a batch of requests -> their answers.
        key: requests with equal keys may share a batch.
        thread: runs the batches.
        max_batch: requests in a batch.
    """

    def __init__(
        self,
        run: Callable[[list[Request]], list[Answer]],
        key: Callable[[Request], Hashable],
        thread: Executor,
        *,
        max_batch: int,
    ) -> None:
        self._run, self._key, self._thread, self._max_batch = run, key, thread, max_batch
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task | None = None

    async def answer(self, request: Request) -> Answer:
        """The answer to a request, or the error that `run` raises for it alone."""
        waiting = _Waiting(request, self._key(request), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run_batches())
        return await waiting.answer

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            requests = [one.request for one in batch]
            answers = await loop.run_in_executor(self._thread, _answers, self._run, requests)
            for one, answer in zip(batch, answers, strict=True):
                if one.answer.done():  # canceled during the scan
                    continue
                if isinstance(answer, BaseException):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)

    def _next_batch(self) -> list[_Waiting]:
        waiting = [one for one in self._waiting if not one.answer.done()]
        batch = [one for one in waiting if one.key == waiting[0].key][: self._max_batch]
        chosen = set(batch)
        self._waiting = [one for one in waiting if one not in chosen]
        return batch


def _answers(run: Callable[[list], list], requests: list) -> list:
    """The answer to each request, or its error."""
    try:
        return run(requests)
    except BaseException as error:  # a panic of Lance is no Exception
        if len(requests) == 1:
            return [error]
    half = len(requests) // 2
    return _answers(run, requests[:half]) + _answers(run, requests[half:])
