"""`python -m bench.serve_load`: the service of a gallery under load; writes bench/results/serve.{json,md}.

Three loads, each on a service of its own: one client; all clients with a scan for each query; all clients with scans
that they share. Every answer is compared with that of `DissimilarityIndex.search`.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import itertools
import json
import multiprocessing
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex

from . import files, machine

RESULTS = Path(__file__).parent / "results"
K, QUERIES, WARM_UP = 10, 256, 1.0

HEAD = """# The service under load

{warning}{environment}.

Measured {datetime} with `{command}`; load average {load_before} before, {load_after} after.

A gallery of {rows:,} x {dim} float32 rows in clusters, k = {k}. Clients send one query after the other, as JSON over
kept connections, for {seconds:g} s, from a process on the same machine. Every answer had the ids that
`DissimilarityIndex.search` finds. *A scan each*: `create_app(max_batch=1)`; *shared scans*: the default.

| load | queries per second | p50, ms | p99, ms | times one client |
|---|---|---|---|---|
"""


class Load(NamedTuple):
    """What was measured. Latencies in seconds."""

    name: str
    clients: int
    max_batch: int
    queries: int
    rate: float
    p50: float
    p99: float
    errors: list[str]


class Query(NamedTuple):
    """The body of a request, and the ids of its answer."""

    body: bytes
    ids: list[int]


def measure(*, rows: int, dim: int, clients: int, seconds: float) -> list[Load]:
    """The three loads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gallery.dissim")
        queries = _make_gallery(path, rows, dim)
        loads = [("one client", 1, 64), (f"{clients} clients, a scan each", clients, 1)]
        loads += [(f"{clients} clients, shared scans", clients, 64)]
        found = []
        for name, count, max_batch in loads:
            with _served(path, max_batch) as url:
                found.append(_load(name, url, queries, count, max_batch, seconds))
        return found


def _make_gallery(path: Path, rows: int, dim: int) -> list[Query]:
    """Rows in clusters of standard deviation 0.5 around standard normal centers, with weights of both signs."""
    draw = torch.Generator().manual_seed(0)
    head = DissimilarityHead(dim, normalize=False)
    with torch.no_grad():
        head.weight.copy_(-torch.rand(dim, generator=draw) + 0.05)
        head.constrain_()
    centers = torch.randn(max(1, rows // 100), dim, generator=draw)

    def clustered(count: int) -> torch.Tensor:
        cluster = torch.randint(len(centers), (count,), generator=draw)
        return centers[cluster] + 0.5 * torch.randn(count, dim, generator=draw)

    index = DissimilarityIndex.create(path, head)
    index.add(clustered(rows))
    query = clustered(QUERIES)
    found = index.search(query, K).ids.tolist()
    return [
        Query(json.dumps({"embedding": row, "k": K}).encode(), ids)
        for row, ids in zip(query.tolist(), found, strict=True)
    ]


@contextmanager
def _served(path: Path, max_batch: int) -> Iterator[str]:
    """The URL of a service in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(path, max_batch, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(120):
            raise TimeoutError("The service did not start within 120 s.")
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(path: Path, max_batch: int, started: Connection) -> None:
    from dissim_retrieval.serve import create_app, listen, run

    app = create_app(path, max_batch=max_batch)
    listening, url = listen("127.0.0.1", 0, token=None)
    run(app, listening, lambda: started.send(url))


def _load(name: str, url: str, queries: list[Query], clients: int, max_batch: int, seconds: float) -> Load:
    """All clients for `seconds`, after a warm-up that does not count."""
    begin = time.perf_counter() + WARM_UP
    end, numbers, stop = begin + seconds, itertools.count(), threading.Event()

    def client() -> tuple[list[float], list[str]]:
        connection, latencies, errors = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60), [], []
        while not stop.is_set():
            query = queries[next(numbers) % len(queries)]
            start = time.perf_counter()
            if start >= end:
                break
            try:
                connection.request("POST", "/api/search", query.body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                text = response.read()
                if response.status != 200:
                    errors.append(f"status {response.status}: {text[:200]!r}")
                elif [one["id"] for one in json.loads(text)["results"]] != query.ids:
                    errors.append(f"other ids than expected: {text[:200]!r}")
            except OSError as error:
                errors.append(repr(error))
                connection.close()
            done = time.perf_counter()
            if begin <= start and done <= end:
                latencies.append(done - start)
        connection.close()
        return latencies, errors

    with ThreadPoolExecutor(clients) as pool:
        try:
            found = [task.result() for task in [pool.submit(client) for _ in range(clients)]]
        finally:
            stop.set()
    latencies = np.concatenate([latencies for latencies, _ in found])
    errors = [error for _, errors in found for error in errors]
    if not len(latencies):
        raise RuntimeError(f"{name}: no query was answered within {seconds} s; {errors[:1]}")
    p50, p99 = np.percentile(latencies, [50, 99])
    return Load(name, clients, max_batch, len(latencies), len(latencies) / seconds, float(p50), float(p99), errors)


def table(loads: list[Load]) -> str:
    """The rows of the Markdown table."""
    return "\n".join(
        f"| {one.name} | {one.rate:.0f} | {1e3 * one.p50:.1f} | {1e3 * one.p99:.1f} | {times:.1f} |"
        for one, times in ((one, one.rate / loads[0].rate) for one in loads)
    )


def main() -> None:
    """Measure, print and write the results. Exit code 1, and nothing is written, if there was an error."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve_load", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    facts = machine.describe() | {"command": shlex.join(["python", "-m", "bench.serve_load", *sys.argv[1:]])}
    facts |= {"rows": options.rows, "dim": options.dim, "k": K, "seconds": options.seconds}
    facts["datetime"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    loads = measure(rows=options.rows, dim=options.dim, clients=options.clients, seconds=options.seconds)
    if errors := [error for one in loads for error in one.errors]:
        sys.exit("FAILED: " + "\n".join(errors[:10]))
    facts["load_after"] = machine.load()
    busy = machine.busy(facts)
    head = HEAD.format(
        warning=f"**Warning: {busy}.**\n\n" if busy else "", environment=machine.environment_summary(facts), **facts
    )
    text = head + table(loads) + "\n"
    files.replace(
        options.output / "serve.json",
        json.dumps({"machine": facts, "loads": [one._asdict() for one in loads]}, indent=1),
    )
    files.replace(options.output / "serve.md", text)
    print(text)


if __name__ == "__main__":
    main()
