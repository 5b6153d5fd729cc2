"""The GPU benchmark as Markdown, from the lines that bench/gpu.py wrote, and the table that is printed last."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from .gpu_environment import environment_summary
from .report import grid

HEAD = """# GPU benchmark

{environment}.

CUDA events time one call, in up to 15 rounds in turns; the cache is overwritten before each. "graph": replayed as a
CUDA graph, "calls": called from Python.

- **Gelem/s**: billions of |q_d - r_d| terms per second of the whole call, by the median.
- **of the peak**: a fraction of the vendor's data sheet (`bench/data_sheets.py`), not of a measured peak: float32
  instructions, two per element of a score and three more for its gradients, or reading and writing everything once,
  whichever is slower. Matrix units can exceed it.
- **error**: the largest error against float64 on a sample, relative to the sum of the absolute terms. Wrong results
  are not timed.
- **(E8)**: two distances, one for the positive and one for the negative weights.
"""


def read(lines: Path) -> list[dict]:
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def document(lines: Path, facts: dict, skipped: list[str], failed: list[str]) -> str:
    """The whole report, with the names of skipped and failed cases."""
    parts = [HEAD.format(environment=environment_summary(facts))]
    parts += [f"**Failed**: {text}\n" for text in failed]
    parts += [f"Not run yet, or no time was left: {', '.join(skipped)}.\n"] if skipped else []
    return "\n".join(parts + [table(line) + "\n" for line in read(lines)])


def table(line: dict) -> str:
    """Every competitor on one case, the fastest first, then those without times and the reason."""
    case, rows = line["case"], line["rows"]
    timed = sorted((row for row in rows if row["seconds"]), key=lambda row: -rate(row))
    ours = [row for row in timed if row["ours"]]
    cells = [
        [
            f"**{row['name']}**" if row["ours"] else row["name"],
            f"{statistics.median(row['seconds']) * 1e3:.4g}",
            f"{min(row['seconds']) * 1e3:.4g}",
            f"{rate(row) / 1e9:,.0f}",
            fraction(row),
            f"{rate(ours[0]) / rate(row):.2f}" if ours else "",
            f"{row['memory'] / 2**20:,.1f} MiB",
            f"{row['error']:.1e}",
            "all" if row["queries"] == case["queries"] else f"{row['queries']} queries",
            f"{len(row['seconds'])} {'graph' if row['replayed'] else 'calls'}",
        ]
        for row in timed
    ]
    cells += [[row["name"], row["reason"] or "not timed", *[""] * 8] for row in rows if not row["seconds"]]
    titles = ("", "ms, median", "ms, min", "Gelem/s", "of the peak", "ours / this", "peak extra memory",
              "error", "measured on", "rounds")  # fmt: skip
    title = "## {name}\n\n{operation}, N={queries:,} M={references:,} D={dim} {dtype}".format(**case)
    title += f", k={case['k']:,}" if case["operation"] in ("topk", "quantized_topk") else ""
    title += f", {case['active']:.1%} of pairs active" if case["operation"].startswith("hinge") else ""
    return f"{title}; {line['seconds']} s.\n\n{grid(titles, cells)}"


def short(lines: Path) -> str:
    """A row for each case: our faster backend, and the best other."""
    cells = []
    for line in read(lines):
        timed = [row for row in line["rows"] if row["seconds"]]
        ours, others = ([row for row in timed if row["ours"] is mine] for mine in (True, False))
        best, other = (max(rows, key=rate, default=None) for rows in (ours, others))
        cells.append(
            [
                line["case"]["name"],
                best["name"].removeprefix("dissim_kernels, ") if best else "none of ours",
                f"{statistics.median(best['seconds']) * 1e3:.4g}" if best else "",
                f"{rate(best) / 1e9:,.0f}" if best else "",
                fraction(best) if best else "",
                other["name"] if other else "none",
                f"{rate(best) / rate(other):.2f}" if best and other else "",
            ]
        )
    titles = ("case", "ours", "ms", "Gelem/s", "of the peak", "best other", "ours / best other")
    return grid(titles, cells) if cells else ""


def rate(row: dict) -> float:
    """Elements per second, by the median round."""
    return row["elements"] / statistics.median(row["seconds"])


def fraction(row: dict) -> str:
    return "" if row["of_peak"] is None else f"{row['of_peak']:.0%}"
