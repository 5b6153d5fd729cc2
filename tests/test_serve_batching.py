"""Concurrent requests share a scan: which ones, in what order; errors, and clients that go away."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from photo_gallery import LOCAL

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import httpx
from dissim_retrieval.serve import create_app
from dissim_retrieval.serve.batching import Batcher

SECONDS = 30  # after which a test gives up


class Scans:
    """Answers a request with twice its number, in batches that wait for `go`; records the batches."""

    def __init__(self, max_batch=8):
        self.batches, self.go, self.pool = [], threading.Event(), ThreadPoolExecutor(1)
        self.batcher = Batcher(self.run, lambda request: request[0], self.pool, max_batch=max_batch)

    def run(self, requests):
        self.batches.append(requests)
        assert self.go.wait(SECONDS)
        if any(number < 0 for _, number in requests):
            raise ValueError("negative")
        return [2 * number for _, number in requests]

    async def submit(self, *requests):
        """A task for each request; returns when the first batch is running and the others wait."""
        tasks = []
        for request in requests:
            tasks.append(asyncio.create_task(self.batcher.answer(request)))
            while not self.batches:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)
        return tasks


def run(test):
    asyncio.run(asyncio.wait_for(test(), SECONDS))


def test_requests_that_arrive_during_a_batch_share_the_next():
    async def test():
        scans = Scans()
        tasks = await scans.submit(*[("a", number) for number in range(12)])
        scans.go.set()
        assert await asyncio.gather(*tasks) == [2 * number for number in range(12)]
        assert [len(batch) for batch in scans.batches] == [1, 8, 3]

    run(test)


def test_only_equal_keys_share_and_the_oldest_is_always_next():
    async def test():
        scans = Scans(max_batch=2)
        tasks = await scans.submit(("a", 0), ("a", 1), ("b", 2), ("a", 3), ("a", 4), ("c", 5), ("b", 6))
        scans.go.set()
        await asyncio.gather(*tasks)
        numbers = [[number for _, number in batch] for batch in scans.batches]
        assert numbers == [[0], [1, 3], [2, 6], [4], [5]]

    run(test)


def test_an_error_reaches_only_its_request():
    async def test():
        scans = Scans()
        tasks = await scans.submit(("a", 0), ("a", 1), ("a", -1), ("a", 3))
        scans.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[:2] + answers[3:] == [0, 2, 6] and isinstance(answers[2], ValueError)

    run(test)


def test_canceled_requests_are_dropped():
    async def test():
        scans = Scans()
        tasks = await scans.submit(("a", 0), ("a", 1), ("a", 2), ("b", 3))
        for number in (0, 1, 3):  # the first is in the running batch
            tasks[number].cancel()
        await asyncio.sleep(0)
        scans.go.set()
        assert await tasks[2] == 4
        assert await scans.batcher.answer(("b", 4)) == 8
        assert [[number for _, number in batch] for batch in scans.batches] == [[0], [2], [4]]

    run(test)


# --- through the service --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """500 random rows of 16 numbers, half of them of camera 1."""
    path = tmp_path_factory.mktemp("made") / "gallery.dissim"
    rows = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    DissimilarityIndex.create(path, DissimilarityHead(16)).add(rows, metadata={"camera": [0, 1] * 250})
    return path


@asynccontextmanager
async def service(path):
    """The application, a client of it, and its calls of `DissimilarityIndex.search`, which wait for `go`."""
    app = create_app(path)
    index, go, calls = app.state.gallery.index, threading.Event(), []
    search = index.search

    def counted(query, k, **options):
        calls.append((len(query), k, options["filter"]))
        assert go.wait(SECONDS)
        return search(query, k, **options)

    index.search = counted
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
        yield app, client, go, calls
    app.state.gallery.close()


def rows_to_search(count):
    return np.random.default_rng(1).standard_normal((count, 16))


async def post_all(app, client, bodies, calls):
    """A task for each search. Returns when the first is being scanned and the others wait."""
    tasks = []
    for body in bodies:
        tasks.append(asyncio.create_task(client.post("/api/search", json=body)))
        await until(lambda: calls)
    await until(lambda: len(waiting(app)) == len(bodies) - 1)
    return tasks


def waiting(app):
    return app.state.gallery._searches._waiting


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_concurrent_searches_share_scans_and_equal_the_index(path):
    queries = rows_to_search(30)
    options = [{"k": 3 + n % 7, "filter": None if n % 3 else "camera = 1"} for n in range(30)]

    async def test():
        async with service(path) as (app, client, go, calls):
            bodies = [{"embedding": row.tolist(), **given} for row, given in zip(queries, options, strict=True)]
            tasks = await post_all(app, client, bodies, calls)
            assert (await client.get("/page.css")).status_code == 200, "a scan does not block the event loop"
            go.set()
            answers = [answer.json()["results"] for answer in await asyncio.gather(*tasks)]
            assert sorted(calls) == [(1, 3, "camera = 1"), (9, 9, "camera = 1"), (20, 9, None)]
        index = DissimilarityIndex.open(path)
        for row, given, answer in zip(queries, options, answers, strict=True):
            expected = index.search(row[None], **given)
            assert [hit["id"] for hit in answer] == expected.ids[0].tolist()
            np.testing.assert_allclose([hit["score"] for hit in answer], expected.scores[0], rtol=1e-5)

    run(test)


def test_a_large_k_does_not_slow_the_others(path):
    async def test():
        async with service(path) as (app, client, go, calls):
            rows, sizes = rows_to_search(4), (5, 5, 400, 9)
            bodies = [{"embedding": row.tolist(), "k": k} for row, k in zip(rows, sizes, strict=True)]
            tasks = await post_all(app, client, bodies, calls)
            go.set()
            for size, answer in zip(sizes, await asyncio.gather(*tasks), strict=True):
                assert len(answer.json()["results"]) == size
            assert calls == [(1, 5, None), (2, 9, None), (1, 400, None)]

    run(test)


def test_a_wrong_request_reaches_only_its_client(path):
    async def test():
        async with service(path) as (app, client, go, calls):
            filters = [None, "camera = 1", "nothing = 1", None, "camera = = 1"]
            rows = rows_to_search(5).tolist()
            bodies = [{"embedding": row, "filter": f} for row, f in zip(rows, filters, strict=True)]
            bodies += [{"id": 7}, {"id": "7"}, {"id": 1000}, {"embedding": [1e300] * 16}]
            tasks = await post_all(app, client, bodies, calls)
            go.set()
            answers = await asyncio.gather(*tasks)
            assert [answer.status_code for answer in answers] == [200, 200, 400, 200, 400, 200, 200, 404, 400]
            assert answers[5].json() == answers[6].json()
            assert "nothing" in answers[2].json()["detail"]

    run(test)


def test_a_client_that_goes_away_is_not_scanned(path):
    """The second query waits for the scan of the first when its client goes away."""

    async def test():
        async with service(path) as (app, client, go, calls):
            body = {"embedding": rows_to_search(1)[0].tolist()}
            (first,) = await post_all(app, client, [body], calls)
            await post_and_leave(app, client, body, lambda: len(waiting(app)) == 1)
            go.set()
            assert (await first).status_code == 200
            assert (await client.post("/api/search", json=body)).status_code == 200
            assert [size for size, *_ in calls] == [1, 1]

    run(test)


async def post_and_leave(app, client, body, when):
    """Send a search to the application, and disconnect when a condition holds."""
    request = client.build_request("POST", "/api/search", json=body)
    messages = [{"type": "http.request", "body": request.content, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await until(when)
        return {"type": "http.disconnect"}

    async def send(message):
        """Nobody reads the answer."""

    scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b""}
    await app(scope | {"headers": request.headers.raw}, receive, send)
