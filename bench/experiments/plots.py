"""Results as pictures: differences with their intervals, of each method to the reference of its group, and of the
groups' learned weights to their other methods."""

from __future__ import annotations

import io

from .bootstrap import Interval
from .comparison import Comparison, compare
from .records import Records
from .summary import RULES, summarize

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
    return _png(figure)


def draw_summary(groups: list[Records]) -> bytes | None:
    """A PNG with two panels for each of RULES: a row for each group of `summarize`. None without groups."""
    from matplotlib.figure import Figure

    found = {rule: summarize(groups, other_cameras=rule)[::-1] for rule in RULES}
    found = {rule: rows for rule, rows in found.items() if rows}
    if not found:
        return None
    heights = [0.5 * len(rows) + 0.7 for rows in found.values()]
    figure = Figure(figsize=(11, sum(heights) + 0.7), layout="constrained")
    axes = figure.subplots(len(found), 2, squeeze=False, sharex="col", sharey="row", height_ratios=heights)
    for pair, (other_cameras, rows) in zip(axes, found.items(), strict=True):
        suffix = ", without images of the query's camera" if other_cameras else ""
        for axis, title, measure in zip(pair, ("mAP", "recall@1"), (0, 1), strict=True):
            for place, row in enumerate(rows):
                plain = _interval(axis, place + 0.15, row.against_plain[measure], OURS, "o")
                other = _interval(axis, place - 0.15, row.against_other[measure], OTHERS, "s")
            _finish(axis, title + suffix)
        pair[0].set_yticks(range(len(rows)), [f"{row.images}, {row.backbone}" for row in rows], fontsize=8)
    figure.legend([plain, other], ["to plain L1", "to the best other method"], loc="outside lower center", ncols=2)
    figure.suptitle("Learned weights: difference in percentage points, 95 % interval", fontsize=10)
    return _png(figure)


def _panel(axis, found: Comparison, field: str, title: str) -> None:
    for place, row in enumerate(found.rows[::-1]):
        gain = getattr(row, field) or Interval(0, 0, 0)
        _interval(axis, place, gain, OURS if row.ours else OTHERS, "o" if row.ours else "s")
    _finish(axis, title)


def _interval(axis, place: float, gain: Interval, color: str, marker: str):
    axis.plot([100 * gain.low, 100 * gain.high], [place, place], color=color, linewidth=2)
    [mean] = axis.plot([100 * gain.mean], [place], marker, color=color, markersize=5)
    return mean


def _finish(axis, title: str) -> None:
    axis.axvline(0, color="black", linewidth=0.8, linestyle="--")
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _name_rows(axis, found: Comparison) -> None:
    rows = found.rows[::-1]
    labels = axis.set_yticks(range(len(rows)), [row.method for row in rows], fontsize=8)
    for tick, row in zip(labels, rows, strict=True):
        tick.label1.set_fontweight("bold" if row.ours else "normal")


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
