"""The outcome as JSON (the schema of pytest-benchmark, so its `compare` reads it), Markdown and a picture."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from . import files, machine
from .picture import draw
from .run import Outcome, Row

HEAD = """# CPU benchmark

{warning}{line}.

Measured {datetime} in {seconds} s with `{command}`; load average {load_before} before, {load_after} after.

One element is one step (query, reference, dimension); a rate is elements over the seconds of the whole call, of the
median round of {rounds}, all competitors taking turns in one process. The **ceiling** is what the same instructions
do in registers on all threads, or what reading memory allows, whichever is less, of the median round too
(`bench/peak.cpp`, `bench/cases.py`): **at most** so many times the best other's rate is left to anyone. The
**tile**, where one is given, is the kernels' own register tile out of L1: its loads keep it below the ceiling, and
packing, outer caches and the result keep a call below it. The
**error** is the largest against float64, on a sample of the timed call's own result, in units of the sum of absolute
terms (6e-8: one rounding of float32); what is wrong is not timed. In a hinge step it may be that of one pair
within a rounding of the margin, active here and not in float64.
**Extra memory** is the rise of resident memory in one call, the result included. Slow competitors are measured on
fewer queries, as stated. (E8) two distances for two signs of weights; (one sign) knows only weights of one sign, and
was given such (E11).
"""


#: What of a call's time is known.
SHARES = ("arithmetic", "tile", "block", "pages")
HEAD_OF_SHARES = """## Where the time of our call goes

In ms: its **arithmetic** at the ceiling; what the register **tile** takes beyond that, for loads and for keeping sums
small; what a **block** of tiles takes beyond that, for packing queries, settling sums and outer caches; the **pages**
of the result, which the system maps and clears on all threads before anything is written there, unless memory freed
before is used again, in their quickest round: what a system has at hand for it varies many times over; and what is
**left** for packing references, writing the result, waking threads and Python.
Moving each input and output once through **memory** takes as long as stated, more or less of it beside arithmetic.
Less than nothing is left where a busy machine slowed the one and not the other.
"""


def write(outcomes: list[Outcome], facts: dict, folder: Path) -> list[Path]:
    contents: dict[str, str | bytes] = {"cpu.json": to_json(outcomes, facts), "cpu.md": to_markdown(outcomes, facts)}
    contents["cpu.png"] = draw(outcomes, facts)
    for name, content in contents.items():
        files.replace(folder / name, content)
    return [folder / name for name in contents]


# --- Markdown ------------------------------------------------------------------------------------------------------


def to_markdown(outcomes: list[Outcome], facts: dict) -> str:
    warning = machine.busy(facts)
    measured = [outcome for outcome in outcomes if outcome.ceilings]
    rounds = max((len(row.seconds) for outcome in measured for row in outcome.rows), default=0)
    head = HEAD.format(
        **facts,
        line=machine.line(facts),
        rounds=rounds,
        warning=f"**{warning}**\n\n" if warning else "",
    )
    cells = [row for outcome in measured for row in summary(outcome)]
    titles = ("case", "ours, G elements/s", "of the ceiling", "best other", "times the best other", "at most",
              "extra memory", "of the best other", "error")  # fmt: skip
    shares = grid(("case", "ours, ms", *SHARES, "left", "memory"), [where_time_goes(outcome) for outcome in measured])
    return "\n".join(
        [head, grid(titles, cells), "", HEAD_OF_SHARES, shares, ""] + [table(outcome) + "\n" for outcome in outcomes]
    )


def summary(outcome: Outcome) -> list[list[str]]:
    best = outcome.best_peer
    return [
        [
            outcome.case.name + ("" if row.name == "dissim_kernels" else f" ({row.name})"),
            _rate(row.rate),
            f"{row.rate / outcome.limit[1]:.0%}",
            f"{best.name} {_rate(best.rate)}" if best else "none",
            f"{row.rate / best.rate:.2f}" if best else "",
            f"{outcome.limit[1] / best.rate:.2f}" if best else "",
            _memory(row),
            _memory(best) if best else "",
            f"{row.error:.1e}",
        ]
        for row in outcome.rows
        if row.ours and row.seconds
    ]


def where_time_goes(outcome: Outcome) -> list[str]:
    ours = next(row for row in outcome.rows if row.name == "dissim_kernels")
    seconds, shares = statistics.median(ours.seconds), outcome.shares
    memory = shares.pop("memory")
    columns = [seconds, *(shares.get(name) for name in SHARES), seconds - sum(shares.values()), memory]
    return [outcome.case.name, *("" if share is None else f"{share * 1e3:.3g}" for share in columns)]


def table(outcome: Outcome) -> str:
    """Every competitor on one case, the fastest first, then those without times and why."""
    case, ours = outcome.case, [row for row in outcome.rows if row.ours and row.seconds]
    title = f"## {case.name}\n\n{case.operation}, N={case.queries:,} M={case.references:,} D={case.dim} {case.dtype}"
    if case.operation.startswith("hinge"):
        title += f", {case.active:.1%} of pairs active"
    if outcome.ceilings:
        binds, limit = outcome.limit
        speeds = [f"{name} {speed / 1e9:.1f} G{'B' if name in ('memory', 'pages') else ' elements'}/s"
                  for name, speed in outcome.ceilings.items()]  # fmt: skip
        title += f"; ceiling {_rate(limit)} G elements/s, by {binds} ({', '.join(speeds)})"
    rows = sorted((row for row in outcome.rows if row.seconds), key=lambda row: -row.rate)
    cells = [
        [
            f"**{row.name}**" if row.ours else row.name + (" (one sign)" if row.one_sign else ""),
            f"{statistics.median(row.seconds) * 1e3:.4g}",
            f"{min(row.seconds) * 1e3:.4g}",
            _rate(row.rate),
            f"{row.rate / outcome.limit[1]:.0%}",
            f"{ours[0].rate / row.rate:.2f}" if ours else "",
            _memory(row),
            f"{row.error:.1e}",
            "all" if row.queries == case.queries else f"{row.queries} queries",
        ]
        for row in rows
    ]
    cells += [
        [row.name, row.reason or "not timed: ours is wrong", *[""] * 7] for row in outcome.rows if not row.seconds
    ]
    titles = ("", "ms, median", "ms, least", "G elements/s", "of the ceiling", "ours is faster, times",
              "extra memory", "error", "measured on")  # fmt: skip
    return f"{title}.\n\n{grid(titles, cells)}"


def grid(titles, cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    rows = [titles, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def _rate(rate: float) -> str:
    return f"{rate / 1e9:.3g}"


def _memory(row: Row) -> str:
    return "unknown" if row.memory is None else f"{row.memory / 2**20:.1f} MiB"


# --- JSON ----------------------------------------------------------------------------------------------------------


def to_json(outcomes: list[Outcome], facts: dict) -> str:
    benchmarks = [_benchmark(outcome, row) for outcome in outcomes for row in outcome.rows if row.seconds]
    reasons = [
        {"case": outcome.case.name, "name": row.name, "reason": row.reason, "error": row.error}
        for outcome in outcomes
        for row in outcome.rows
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


def _benchmark(outcome: Outcome, row: Row) -> dict:
    case, seconds = outcome.case, sorted(row.seconds)
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
            "of_ceiling": row.rate / outcome.limit[1],
            "ceiling": outcome.limit[1],
            "ceiling_by": outcome.limit[0],
            "ceilings": outcome.ceilings,
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
