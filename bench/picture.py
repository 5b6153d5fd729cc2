"""The outcome as one picture: a panel a case, a bar a competitor, a line at the ceiling."""

from __future__ import annotations

import io
import math
import textwrap

from . import machine
from .run import Outcome

COLUMNS = 3
OURS, OTHERS, CEILING = "#0b6e4f", "#b8c4cc", "#c1121f"


def draw(outcomes: list[Outcome], facts: dict) -> bytes:
    """A PNG. Readable without colour: ours is in bold letters, the ceiling is a dashed line with its number."""
    from matplotlib.figure import Figure

    outcomes = [outcome for outcome in outcomes if any(row.seconds for row in outcome.rows)]
    lines = max(1, math.ceil(len(outcomes) / COLUMNS))
    figure = Figure(figsize=(6 * COLUMNS, 3.1 * lines + 1.2), layout="constrained")
    title = "G elements/s on the CPU, longer is faster; dashed: ceiling of the same instructions, or of memory"
    line = textwrap.fill(machine.line(facts), 200)
    figure.suptitle("\n".join(filter(None, [title, machine.busy(facts)])) + f"\n{line}", fontsize=10)
    axes = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
    for axis, outcome in zip(axes, outcomes, strict=False):
        _panel(axis, outcome)
    for axis in axes[len(outcomes) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _panel(axis, outcome: Outcome) -> None:
    rows = sorted((row for row in outcome.rows if row.seconds), key=lambda row: row.rate)
    rates, (binds, limit) = [row.rate / 1e9 for row in rows], outcome.limit
    bars = axis.barh(range(len(rows)), rates, color=[OURS if row.ours else OTHERS for row in rows])
    axis.bar_label(bars, [f" {rate:.3g}" for rate in rates], fontsize=8)
    axis.axvline(limit / 1e9, color=CEILING, linestyle="--", linewidth=1)
    axis.set_title(f"{outcome.case.name}  (ceiling {limit / 1e9:.3g}, {binds})", fontsize=9, loc="left")
    axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.ours else "normal")
    axis.set_xlim(0, max([*rates, limit / 1e9]) * 1.08)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
