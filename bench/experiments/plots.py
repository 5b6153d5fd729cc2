"""Results as one picture: for each group, the difference of each method to the reference, with its interval."""

from __future__ import annotations

import io

from .comparison import Comparison, compare
from .records import Records

OURS, OTHERS = "#0b6e4f", "#55606a"


def draw(name: str, groups: list[Records]) -> bytes | None:
    """A PNG, readable without color: names of ours are bold. None if no group has a complete run."""
    from matplotlib.figure import Figure

    complete = [(records, found) for records in groups if (found := compare(records)) is not None]
    if not complete:
        return None
    heights = [0.28 * len(found.rows) + 1.2 for _, found in complete]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    axes = figure.subplots(len(complete), 2, squeeze=False, sharey="row", height_ratios=heights)
    for (records, found), pair in zip(complete, axes, strict=True):
        _panel(pair[0], found, "precision_gain", f"{records.plan['title']}: mAP")
        _panel(pair[1], found, "recall_gain", "recall@1")
        _name_rows(pair[0], found)
    figure.suptitle(f"{name}: difference in percentage points, 95 % interval", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _panel(axis, found: Comparison, field: str, title: str) -> None:
    rows = found.rows[::-1]
    for place, row in enumerate(rows):
        gain = getattr(row, field)
        low, mean, high = (0, 0, 0) if gain is None else (100 * gain.low, 100 * gain.mean, 100 * gain.high)
        color = OURS if row.ours else OTHERS
        axis.plot([low, high], [place, place], color=color, linewidth=2)
        axis.plot([mean], [place], "o" if row.ours else "s", color=color, markersize=5)
    axis.axvline(0, color="black", linewidth=0.8, linestyle="--")
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _name_rows(axis, found: Comparison) -> None:
    rows = found.rows[::-1]
    labels = axis.set_yticks(range(len(rows)), [row.method for row in rows], fontsize=8)
    for tick, row in zip(labels, rows, strict=True):
        tick.label1.set_fontweight("bold" if row.ours else "normal")
