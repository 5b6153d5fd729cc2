"""The results as one picture: a panel for each case, a bar for each competitor, a line at the peak."""

from __future__ import annotations

import io
import math
import textwrap

from . import machine
from .cases import gelem_per_s
from .run import CaseResult

COLUMNS = 3
OURS, OTHERS, PEAK = "#0b6e4f", "#b8c4cc", "#c1121f"


def draw(results: list[CaseResult], facts: dict) -> bytes:
    """A PNG that is readable without color: our names are bold, the peak is a dashed line with its number."""
    from matplotlib.figure import Figure

    results = [result for result in results if any(row.seconds for row in result.rows)]
    lines = max(1, math.ceil(len(results) / COLUMNS))
    figure = Figure(figsize=(6 * COLUMNS, 3.1 * lines + 1.2), layout="constrained")
    title = "Gelem/s on the CPU, longer is faster; dashed line: peak of the same instructions, or of memory"
    environment = textwrap.fill(machine.environment_summary(facts), 200)
    figure.suptitle("\n".join(filter(None, [title, machine.busy(facts), environment])), fontsize=10)
    axes = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
    for axis, result in zip(axes, results, strict=False):
        _panel(axis, result)
    for axis in axes[len(results) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _panel(axis, result: CaseResult) -> None:
    rows = sorted((row for row in result.rows if row.seconds), key=lambda row: row.rate)
    rates, (limited_by, peak) = [row.rate / 1e9 for row in rows], result.peak
    bars = axis.barh(range(len(rows)), rates, color=[OURS if row.ours else OTHERS for row in rows])
    axis.bar_label(bars, [f" {gelem_per_s(row.rate)}" for row in rows], fontsize=8)
    axis.axvline(peak / 1e9, color=PEAK, linestyle="--", linewidth=1)
    axis.set_title(f"{result.case.name}  (peak {gelem_per_s(peak)}, by {limited_by})", fontsize=9, loc="left")
    axis.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.ours else "normal")
    axis.set_xlim(0, max([*rates, peak / 1e9]) * 1.08)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
