"""`python -m bench.index_speed`: opening an index on disk, and searching through it with codes and with clusters.

Writes bench/results/index_speed.{json,md}. Exit code 1 if two searches differ.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from torch import Tensor

from . import files, machine, problem
from .cases import Case
from .measure import interleave

ROOT = Path(__file__).parents[1]
ROUNDS, MIN_ROUND_S = 5, 0.5
#: Rows that are added at a time: each becomes a segment.
ADDED_ROWS = 250_000

HEAD = """# Opening and searching an index

{warning}{environment}.

Measured {datetime} with `{command}`; load average {load_before} before, {load_after} after.

Median of {rounds} rounds, in which all rows of a table take turns. float32, k = {k}, rows around class centers,
weights of mostly one sign.

## Open {open_rows:,} x {open_dim}

**cold**: the page cache is emptied of the files first. **same bytes**: reading the files that an open reads, and
nothing else. Codes are checked against their checksum, and mapped.

| what | MiB | warm, s | cold, s |
|---|---|---|---|
{open_table}

## One query of {search_rows:,} x {search_dim}, through the index

**filter**: a condition that half of the rows satisfy.

| search | ms | filter, ms |
|---|---|---|
{search_table}

All results were bit-identical.
"""


def main() -> int:
    options = _options()
    facts = machine.describe() | {"command": shlex.join(["python", "-m", "bench.index_speed", *sys.argv[1:]])}
    facts["datetime"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        opening = _opening(Path(folder), options)
        searching = _searching(Path(folder), options)
    if searching is None:
        print("FAILED: searches differ")
        return 1
    facts["load_after"] = machine.load()
    _write(options, facts, opening, searching)
    return 0


def _made(path: Path, rows: int, dim: int) -> Tensor:
    """An index on disk, with codes. Returns a query."""
    drawn = problem.make(Case("", "quantized_topk", 1, rows, dim))
    head = DissimilarityHead(dim, sign="free", normalize=False)
    with torch.no_grad():
        head.weight.copy_(drawn.weight)
        head.bias.fill_(drawn.bias)
    index = DissimilarityIndex.create(path, head, quantized=True)
    for first in range(0, rows, ADDED_ROWS):
        part = drawn.reference[first : first + ADDED_ROWS]
        index.add(part, metadata={"half": torch.arange(len(part)) % 2})
    return drawn.query


def _opening(folder: Path, options: argparse.Namespace) -> dict[str, dict]:
    path = folder / "open.dissim"
    _made(path, options.open_rows, options.open_dim)
    rows, codes = sorted((path / "rows" / "data").iterdir()), sorted((path / "codes").iterdir())
    calls: dict[str, tuple[list[Path], Callable]] = {
        "open": (rows, lambda: DissimilarityIndex.open(path)),
        "same bytes": (rows, lambda: _read(rows)),
        "open with codes": (rows + codes, lambda: DissimilarityIndex.open(path, quantized=True)),
        "same bytes, with codes": (rows + codes, lambda: _read(rows + codes)),
    }
    warm = interleave({name: call for name, (_, call) in calls.items()}, ROUNDS, 0)
    cold: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, (used, call) in calls.items():
            _empty_cache(used)
            begin = time.perf_counter()
            call()
            cold[name].append(time.perf_counter() - begin)
    return {
        name: {"mib": sum(file.stat().st_size for file in used) / 2**20, "warm_s": warm[name], "cold_s": cold[name]}
        for name, (used, _) in calls.items()
    }


def _read(paths: list[Path]) -> None:
    """Read files as fast as one thread can."""
    buffer = bytearray(1 << 24)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _empty_cache(paths: list[Path]) -> None:
    """Drop the pages of files from the page cache."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _searching(folder: Path, options: argparse.Namespace) -> dict[str, dict] | None:
    """Rounds of each search; None if two differ."""
    path = folder / "search.dissim"
    query = _made(path, options.search_rows, options.search_dim)
    DissimilarityIndex.open(path, clustered=True).optimize()
    indexes = {
        "every row": DissimilarityIndex.open(path),
        "codes": DissimilarityIndex.open(path, quantized=True),
        "clusters": DissimilarityIndex.open(path, clustered=True),
    }
    result = {name: {"rounds_ms": {}} for name in indexes}
    for filter in (None, "half = 1"):
        expected = indexes["every row"].search(query, options.k, filter=filter)
        for index in indexes.values():
            found = index.search(query, options.k, filter=filter)
            if not (torch.equal(found.scores, expected.scores) and torch.equal(found.ids, expected.ids)):
                return None
        calls = {
            name: lambda index=index, filter=filter: index.search(query, options.k, filter=filter)
            for name, index in indexes.items()
        }
        for name, seconds in interleave(calls, ROUNDS, MIN_ROUND_S).items():
            result[name]["rounds_ms"][filter or ""] = [1000 * one for one in seconds]
    return result


def _write(options: argparse.Namespace, facts: dict, opening: dict, searching: dict) -> None:
    open_lines = [
        f"| {name} | {row['mib']:,.0f} | {_median(row['warm_s']):.3g} | {_median(row['cold_s']):.3g} |"
        for name, row in opening.items()
    ]
    search_lines = [
        f"| {name} | " + " | ".join(f"{_median(rounds):.3g}" for rounds in row["rounds_ms"].values()) + " |"
        for name, row in searching.items()
    ]
    text = HEAD.format(
        **facts, **vars(options), environment=machine.environment_summary(facts), rounds=ROUNDS,
        warning=f"**Warning:** {busy}.\n\n" if (busy := machine.busy(facts)) else "",
        open_table="\n".join(open_lines), search_table="\n".join(search_lines),
    )  # fmt: skip
    content = {"facts": facts, "options": vars(options), "open": opening, "search": searching}
    files.replace(options.output / "index_speed.json", json.dumps(content, indent=1, default=str) + "\n")
    files.replace(options.output / "index_speed.md", text)
    print(text)


def _median(rounds: list[float]) -> float:
    return torch.tensor(rounds).median().item()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.index_speed", description=__doc__)
    sizes = {"open-rows": 1_000_000, "open-dim": 256, "search-rows": 1_000_000, "search-dim": 128, "k": 10}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, help="where the indexes are written; default: that of temporary files")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results", help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
