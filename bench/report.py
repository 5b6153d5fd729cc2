"""The results as JSON (the schema of pytest-benchmark, so its `compare` reads it), Markdown and a picture."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

from . import files, machine
from .cases import CASES, gelem_per_s
from .picture import draw
from .run import CaseResult, Measurement

HEAD = """# CPU benchmark

{warning}{environment}.

Measured {datetime} in {seconds} s with `{command}`; load average {load_before} before, {load_after} after.

- **Gelem/s**: billions of terms abs(q_d - r_d) per second of the whole call, by the median of {rounds} rounds. All
  competitors take turns in one process.
- **Peak**: the rate of the same instructions in registers on all threads, or the rate that reading memory allows,
  whichever is lower, by the median of the same rounds (`bench/peak.cpp`, `bench/cases.py`). **peak / best other** is
  how many times as fast as the best other an implementation with our instructions could be.
- **tile**: the rate of the kernels' register tile with data in L1; **block**: that of a block of tiles. Loads keep a
  tile below the peak; packing, outer caches and the result keep a call below the block.
- **error**: the largest error against float64 on a sample of the timed call's result, relative to the sum of the
  absolute terms; 6e-8 is one rounding of float32. Wrong results are not timed. In a hinge step the error may be that
  of one pair within a rounding of the margin, which is active here but not in float64. In a log-sum-exp step it is 1
  for a row whose pairs are all below rounding: its gradient is 0 here, and less than a rounding of others in float64.
- **extra memory**: the rise of resident memory in one call, the result included.
- **measured on**: slow competitors run on fewer queries.
- **(E8)**: two distances, one for the positive and one for the negative weights. **(one sign)**: the competitor
  supports only weights of one sign and was given such weights (E11).
"""

TIME_PARTS = ("arithmetic", "tile", "block", "page faults")
HEAD_OF_TIME_PARTS = """## Where the time of our call goes

In milliseconds:

- **arithmetic**: at its peak;
- **tile**: what the register tile adds, for loads and for keeping partial sums short;
- **block**: what a block of tiles adds, for packing queries, adding partial sums and outer caches;
- **page faults**: the system maps and clears the pages of a large result at their first use. It takes the minimum of
  the rounds, because this time varies many times over with the system's free memory;
- **other**: the rest, for packing references, writing the result, waking threads and Python. It is negative where a
  busy machine slowed the peak more than the call;
- **memory**: the time to move each input and output once, which partly overlaps with the arithmetic.
"""


def write(results: list[CaseResult], facts: dict, folder: Path) -> list[Path]:
    """Writes cpu.json, cpu.md and cpu.png; their paths."""
    contents: dict[str, str | bytes] = {"cpu.json": to_json(results, facts), "cpu.md": to_markdown(results, facts)}
    contents["cpu.png"] = draw(results, facts)
    for name, content in contents.items():
        files.replace(folder / name, content)
    return [folder / name for name in contents]


# --- Markdown ------------------------------------------------------------------------------------------------------


def to_markdown(results: list[CaseResult], facts: dict) -> str:
    warning = machine.busy(facts)
    measured = [result for result in results if result.peaks]
    rounds = max((len(row.seconds) for result in measured for row in result.rows), default=0)
    head = HEAD.format(
        **facts,
        environment=machine.environment_summary(facts),
        rounds=rounds,
        warning=f"**{warning}**\n\n" if warning else "",
    )
    titles = ("case", "ours, Gelem/s", "of the peak", "best other, Gelem/s", "ours / best other",
              "peak / best other", "our extra memory", "extra memory of the best other", "our error")  # fmt: skip
    overview = grid(titles, [row for result in measured for row in summary(result)])
    titles = ("case", "our call", *TIME_PARTS, "other", "memory")
    parts = grid(titles, [where_time_goes(result) for result in measured])
    tables = [table(result) + "\n" for result in results]
    return "\n".join([head, overview, "", HEAD_OF_TIME_PARTS, parts, "", *tables])


def summary(result: CaseResult) -> list[list[str]]:
    """A row for each measurement of ours."""
    best, (_, peak) = result.best_peer, result.peak
    return [
        [
            result.case.name + ("" if row.name == "dissim_kernels" else f" ({row.name})"),
            gelem_per_s(row.rate),
            f"{row.rate / peak:.0%}",
            f"{best.name}: {gelem_per_s(best.rate)}" if best else "none",
            f"{row.rate / best.rate:.2f}" if best else "",
            f"{peak / best.rate:.2f}" if best else "",
            _memory(row),
            _memory(best) if best else "",
            f"{row.error:.1e}",
        ]
        for row in result.rows
        if row.ours and row.seconds
    ]


def where_time_goes(result: CaseResult) -> list[str]:
    ours = next(row for row in result.rows if row.name == "dissim_kernels")
    seconds, parts = statistics.median(ours.seconds), result.time_parts
    memory = parts.pop("memory")
    columns = [seconds, *(parts.get(name) for name in TIME_PARTS), seconds - sum(parts.values()), memory]
    return [result.case.name, *("" if part is None else f"{part * 1e3:.3g}" for part in columns)]


def table(result: CaseResult) -> str:
    """Every competitor on one case, the fastest first, then those without times and the reason."""
    case, ours = result.case, [row for row in result.rows if row.ours and row.seconds]
    title = f"## {case.name}\n\n{case.operation}, N={case.queries:,} M={case.references:,} D={case.dim} {case.dtype}"
    if case.has_active_pairs:
        title += f", {case.active:.1%} of pairs active"
    if result.peaks:
        limited_by, peak = result.peak
        rates = [f"{name} {rate / 1e9:.1f} {'GB' if name in ('memory', 'pages') else 'Gelem'}/s"
                 for name, rate in result.peaks.items()]  # fmt: skip
        title += f"; peak {gelem_per_s(peak)} Gelem/s, limited by {limited_by} ({', '.join(rates)})"
    rows = sorted((row for row in result.rows if row.seconds), key=lambda row: -row.rate)
    cells = [
        [
            f"**{row.label}**" if row.ours else row.label,
            f"{statistics.median(row.seconds) * 1e3:.4g}",
            f"{min(row.seconds) * 1e3:.4g}",
            gelem_per_s(row.rate),
            f"{row.rate / result.peak[1]:.0%}",
            f"{ours[0].rate / row.rate:.2f}" if ours else "",
            _memory(row),
            f"{row.error:.1e}",
            "all" if row.queries == case.queries else f"{row.queries} queries",
        ]
        for row in rows
    ]
    cells += [
        [row.name, row.reason or "not timed: ours is wrong", *[""] * 7] for row in result.rows if not row.seconds
    ]
    titles = ("", "ms, median", "ms, min", "Gelem/s", "of the peak", "ours / this", "extra memory", "error",
              "measured on")  # fmt: skip
    return f"{title}.\n\n{grid(titles, cells)}"


def grid(titles, cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    rows = [titles, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def _memory(row: Measurement) -> str:
    return "unknown" if row.memory is None else f"{row.memory / 2**20:.1f} MiB"


# --- JSON ----------------------------------------------------------------------------------------------------------

CASES_BY_NAME = {case.name: case for case in CASES}


def to_json(results: list[CaseResult], facts: dict) -> str:
    benchmarks = [_benchmark(result, row) for result in results for row in result.rows if row.seconds]
    reasons = [
        {"case": result.case.name, "name": row.name, "reason": row.reason, "error": row.error}
        for result in results
        for row in result.rows
        if not row.seconds
    ]
    document = {
        "machine_info": facts,
        "commit_info": {"id": facts["commit"]},
        "benchmarks": benchmarks,
        "not_timed": reasons,
        "datetime": facts["datetime"],
        "version": "5.0.0",
    }
    return json.dumps(document, indent=1) + "\n"


def read(path: Path) -> tuple[list[CaseResult], dict]:
    """The results and facts of a file that `to_json` wrote. Cases without any time are not in it."""
    document = json.loads(path.read_text())
    results: dict[str, CaseResult] = {}
    for entry in document["benchmarks"]:
        name, info = entry["group"], entry["extra_info"]
        if name not in results:
            sizes = {key: info[key] for key in ("references", "dim", "dtype", "active")}
            results[name] = CaseResult(replace(CASES_BY_NAME[name], **sizes), [], info["peaks"])
        results[name].rows.append(
            Measurement(
                entry["name"], info["ours"], info["one_sign"], info["queries"], info["elements"], info["error"],
                info["extra_memory_bytes"], seconds=entry["stats"]["data"],
            )
        )  # fmt: skip
    for result in results.values():
        result.case = replace(result.case, queries=max(row.queries for row in result.rows))
    for entry in document["not_timed"]:
        if entry["case"] in results:
            result = results[entry["case"]]
            result.rows.append(Measurement(entry["name"], False, False, 0, 0, entry["error"], reason=entry["reason"]))
    return list(results.values()), document["machine_info"]


def _benchmark(result: CaseResult, row: Measurement) -> dict:
    case, seconds = result.case, sorted(row.seconds)
    peak_by, peak = result.peak
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {
        "group": case.name,
        "name": row.name,
        "fullname": f"{case.name}: {row.name}",
        "params": None,
        "param": None,
        "options": {"timer": "perf_counter"},
        "extra_info": {
            "operation": case.operation,
            "queries": row.queries,
            "references": case.references,
            "dim": case.dim,
            "dtype": case.dtype,
            "active": case.active,
            "ours": row.ours,
            "one_sign": row.one_sign,
            "elements": row.elements,
            "elements_per_second": row.rate,
            "of_peak": row.rate / peak,
            "peak": peak,
            "peak_by": peak_by,
            "peaks": result.peaks,
            "extra_memory_bytes": row.memory,
            "error": row.error,
        },
        "stats": {
            "min": seconds[0],
            "max": seconds[-1],
            "mean": statistics.fmean(seconds),
            "stddev": statistics.stdev(seconds) if len(seconds) > 1 else 0,
            "median": statistics.median(seconds),
            "q1": quarters[0],
            "q3": quarters[2],
            "iqr": quarters[2] - quarters[0],
            "ops": 1 / statistics.fmean(seconds),
            "total": sum(seconds),
            "rounds": len(seconds),
            "iterations": 1,
            "data": row.seconds,
        },
    }
