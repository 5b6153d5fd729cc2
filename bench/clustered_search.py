"""`python -m bench.clustered_search`: exact search of clusters against FAISS HNSW, on rows with and without clusters.

Weights of one sign, so that the search is one by L1 distance (E11) and FAISS gets rows times |w|. All searches take
turns. Ours are checked against float64 first; HNSW searches with the smallest efSearch that reaches the recall.
Then it measures what a search of clusters costs on random rows, where the bounds exclude nothing. Writes
bench/results/clustered_search.{json,md}. A wrong result of ours ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from dissim_kernels import TopK, cluster_references, fused_dissim_topk, quantize_references

from . import files, machine
from .cases import Case
from .correctness import CorrectnessCheck
from .measure import interleave
from .peers.libraries import scaled
from .problem import Problem

ROOT = Path(__file__).parents[1]
RECALL = 0.95  # of HNSW
#: Its settings, and the values of efSearch that are tried, smallest first.
NEIGHBORS, EF_CONSTRUCTION = 32, 80
EF_SEARCH = [round(10 * 1.25**i) for i in range(30)]
ROUNDS, MIN_ROUND_S = 5, 0.5
NOISE, DIMENSIONS = 0.5, 24
#: Of the measurement on random rows.
RANDOM_QUERIES, RANDOM_ROUNDS, MIN_RANDOM_ROUND_S = (1, 256), 30, 0.1

HEAD = """# Exact search of clusters against HNSW

{warning}{environment}.

Measured {datetime} with `{command}`; load average {load_before} before, {load_after} after.

{queries} queries, {rows:,} references of {dim} dimensions, k = {k}, float32, weights of one sign. Times are of a
search for all queries at once, divided by their number; all searches take turns, median of {rounds} rounds. **rows
scored**: the mean for a query, pivots not included. **recall**: of the k references of the exact search. Ours are
exact: the searches with codes and with clusters return the bits of the plain one, which was checked against float64
before anything was timed. HNSW is FAISS IndexHNSWFlat with L1, M = {neighbors}, efConstruction = {ef_construction},
and the smallest efSearch with a recall of {recall} here, or the largest that was tried if it is marked so.
"""
OVERHEADS = """
## Random rows

Normally distributed rows have no clusters, so the bounds exclude nothing and every row is scored. Milliseconds of a
call, median of {rounds} rounds, and the median of the rounds' ratios.

| queries | rows | top-k | top-k, clusters | ratio |
|---|---|---|---|---|
"""


def clusters_of_rows(options: argparse.Namespace, count: int, generator: torch.Generator) -> Tensor:
    """Rows around class centers, which are normally distributed."""
    centers = torch.randn(options.classes, options.dim, generator=torch.Generator().manual_seed(1))
    row_class = torch.randint(options.classes, (count,), generator=generator)
    return centers[row_class] + NOISE * torch.randn(count, options.dim, generator=generator)


def low_dimensional(options: argparse.Namespace, count: int, generator: torch.Generator) -> Tensor:
    """Normally distributed points of a subspace, plus noise in every dimension."""
    basis = torch.randn(DIMENSIONS, options.dim, generator=torch.Generator().manual_seed(1)) / DIMENSIONS**0.5
    points = torch.randn(count, DIMENSIONS, generator=generator)
    return points @ basis + 0.1 * torch.randn(count, options.dim, generator=generator)


def without_clusters(options: argparse.Namespace, count: int, generator: torch.Generator) -> Tensor:
    """Normally distributed rows."""
    return torch.randn(count, options.dim, generator=generator)


def main() -> None:
    options = _options()
    facts = machine.describe() | {"command": shlex.join(["python", "-m", "bench.clustered_search", *sys.argv[1:]])}
    facts["datetime"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    titles = {
        f"{options.classes:,} clusters of standard deviation {NOISE}": clusters_of_rows,
        f"{DIMENSIONS} intrinsic dimensions and noise": low_dimensional,
    }
    tables, overheads = {}, []
    for title, draw in titles.items():
        print(title, flush=True)
        rows = _measure(_problem(options, draw, options.queries, options.rows), options.threads)
        tables[title] = {"rows": rows}
        facts["load_after"] = machine.load()
        _write(options, facts, tables, overheads)  # after each: a stopped run keeps its results
    for count in options.random_rows:
        overheads += _overheads(options, count)
        facts["load_after"] = machine.load()
        _write(options, facts, tables, overheads)


def _check(result: TopK, others: Iterable[TopK], problem: Problem) -> None:
    """Ends the run unless the plain result is right and the others are bit-identical to it."""
    identical = all(torch.equal(*pair) for other in others for pair in zip(result, other, strict=True))
    if not identical or not CorrectnessCheck(problem).verdict(result, ours=True).passed:
        sys.exit(f"FAILED the correctness check: {problem.case.queries} x {problem.case.references} rows")


def _problem(options: argparse.Namespace, draw: Callable[..., Tensor], queries: int, rows: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    reference, query = (draw(options, count, generator) for count in (rows, queries))
    weight = -0.5 - torch.rand(options.dim, generator=generator)
    case = Case("", "topk", queries, rows, options.dim, k=options.k)
    return Problem(case, query, reference, weight, 0.0)


def _overheads(options: argparse.Namespace, count: int) -> list[dict]:
    """How much longer than the plain search that of clusters takes on so many random rows."""
    all_queries = _problem(options, without_clusters, max(RANDOM_QUERIES), count)
    clusters, table = cluster_references(all_queries.reference, all_queries.weight), []
    for queries in RANDOM_QUERIES:
        problem = all_queries.first(queries)

        def search(problem=problem, **options):
            return fused_dissim_topk(problem.query, problem.reference, problem.weight, k=problem.case.k, **options)

        calls = {"plain": search, "clusters": lambda search=search: search(clusters=clusters)}
        _check(calls["plain"](), [calls["clusters"]()], problem)
        seconds = interleave(calls, RANDOM_ROUNDS, MIN_RANDOM_ROUND_S)
        plain, clustered = map(torch.tensor, seconds.values())
        ratio = (clustered / plain).median().item()
        table.append({"queries": queries, "rows": count, "ratio": ratio, "seconds": seconds})
        print(f"{queries} x {count} random rows: {ratio:.3g} times the plain search", flush=True)
    return table


def _measure(problem: Problem, threads: int) -> dict[str, dict]:
    """A row for each search of one set of rows."""
    query, reference, weight, k = problem.query, problem.reference, problem.weight, problem.case.k
    rows: dict[str, dict] = {"plain": {"build_s": 0.0}}
    calls: dict[str, Callable] = {"plain": lambda: fused_dissim_topk(query, reference, weight, k=k)}
    made = {}
    for name, prepare in (("quantized", quantize_references), ("clusters", cluster_references)):
        begin = time.perf_counter()
        made[name] = prepare(reference, weight)
        rows[name] = {"build_s": time.perf_counter() - begin}
        calls[name] = lambda name=name: fused_dissim_topk(query, reference, weight, k=k, **{name: made[name]})

    best = calls["plain"]()
    _check(best, [calls[name]() for name in made], problem)
    rows["plain"]["scored"] = len(reference)
    for name in made:
        found = fused_dissim_topk(query, reference, weight, k=k, **{name: made[name]}, return_stats=True)
        rows[name]["scored"] = found.rescored.double().mean().item()
    for row in rows.values():
        row["recall"] = 1.0
    rows["HNSW"], calls["HNSW"] = _hnsw(problem, best.indices, threads)

    for name, seconds in interleave(calls, ROUNDS, MIN_ROUND_S).items():
        rows[name]["rounds_ms_per_query"] = [1000 * s / len(query) for s in seconds]
        rows[name]["ms_per_query"] = 1000 * torch.tensor(seconds).median().item() / len(query)
        print(f"  {name}: {rows[name]['ms_per_query']:.3g} ms", flush=True)
    return rows


def _hnsw(problem: Problem, exact: Tensor, threads: int) -> tuple[dict, Callable]:
    import faiss

    faiss.omp_set_num_threads(threads)
    query, reference = scaled(problem)
    index = faiss.IndexHNSWFlat(problem.case.dim, NEIGHBORS, faiss.METRIC_L1)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    begin = time.perf_counter()
    index.add(reference)
    row = {"build_s": time.perf_counter() - begin}
    for ef_search in EF_SEARCH:
        index.hnsw.efSearch = row["efSearch"] = ef_search
        faiss.cvar.hnsw_stats.reset()
        found = torch.as_tensor(index.search(query, problem.case.k)[1])
        row["scored"] = faiss.cvar.hnsw_stats.ndis / len(query)
        row["recall"] = (found[:, :, None] == exact[:, None]).any(2).double().mean().item()
        if row["recall"] >= RECALL:
            break
    return row, lambda: index.search(query, problem.case.k)


def _write(options: argparse.Namespace, facts: dict, tables: dict, overheads: list[dict]) -> None:
    text = HEAD.format(
        **(facts | vars(options)), environment=machine.environment_summary(facts), rounds=ROUNDS, recall=RECALL,
        neighbors=NEIGHBORS, ef_construction=EF_CONSTRUCTION,
        warning=f"**Warning:** {busy}.\n\n" if (busy := machine.busy(facts)) else "",
    )  # fmt: skip
    names = {"plain": "top-k", "quantized": "top-k, quantized", "clusters": "top-k, clusters"}
    for title, table in tables.items():
        text += (
            f"\n## {title}\n\n| search | build, s | ms per query | rows scored | recall |\n|---|---|---|---|---|\n"
        )
        for name, row in table["rows"].items():
            label = names.get(name) or f"FAISS HNSW, efSearch {row['efSearch']}"
            label += "" if row["recall"] >= RECALL else f" (none reached {RECALL})"
            text += f"| {label} | {row['build_s']:.3g} | {row['ms_per_query']:.3g} | {row['scored']:,.0f} |"
            text += f" {row['recall']:.3g} |\n"
    if overheads:
        text += OVERHEADS.format(rounds=RANDOM_ROUNDS)
    for row in overheads:
        plain, clustered = (1000 * torch.tensor(seconds).median().item() for seconds in row["seconds"].values())
        text += f"| {row['queries']} | {row['rows']:,} | {plain:.3g} | {clustered:.3g} | {row['ratio']:.3f} |\n"
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, "options": {**vars(options), "output": str(options.output)}, "tables": tables}
    content["random_rows"] = overheads
    files.replace(options.output / "clustered_search.json", json.dumps(content, indent=1) + "\n")
    files.replace(options.output / "clustered_search.md", text)
    print(f"wrote {os.path.relpath(options.output / 'clustered_search.md')}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.clustered_search", description=__doc__)
    for name, value in {"rows": 1_000_000, "queries": 256, "dim": 256, "k": 10, "classes": 2000}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    sizes = [100_000, 200_000, 1_000_000]
    parser.add_argument("--random-rows", type=int, nargs="*", default=sizes, help="numbers of random rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of FAISS")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results", help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
