"""The report's figures. The colors are Okabe and Ito's, safe for color-blind readers, and never the only
difference."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..data import ImageSet
from .evaluate import Evaluation
from .histogram import RECALL_GRID

HIT, MISS, INK, FAINT = "#009E73", "#D55E00", "#222222", "#8A8A8A"
LINES = [
    ("#0072B2", "-"),
    ("#E69F00", "--"),
    ("#CC79A7", "-."),
    ("#56B4E9", ":"),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
    ("#009E73", (0, (1, 1))),
]
#: Rows of (method, cells). A cell is its text and whether it is the best of the column.
Table = list[tuple[str, list[tuple[str, bool]]]]
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "text.parse_math": False,  # names may have $
    "svg.hashsalt": "dissim",  # the same input gives the same file
}


def curves_svg(evaluations: list[Evaluation]) -> bytes:
    """CMC, precision-recall and the first method's score histogram in a row."""
    with rc_context(STYLE):
        figure = Figure(figsize=(15, 4.4), layout="constrained")
        cmc, precision_recall, histogram = figure.subplots(1, 3)
        draw_cmc(cmc, evaluations)
        draw_precision_recall(precision_recall, evaluations)
        draw_histogram(histogram, evaluations[0])
        figure.savefig(file := io.BytesIO(), format="svg", metadata={"Date": None})
    return file.getvalue()


def overview_png(
    evaluations: list[Evaluation], images: ImageSet, columns: list[str], table: Table, *, title: str
) -> bytes:
    """Ranked lists of the first method, two curves, and all metrics. It is legible on a page of 800 pixels."""
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 6.6 + 0.3 * len(table)), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold", color=INK)
        figure.supxlabel(f"Images: {images.credit}", x=0.01, ha="left", fontsize=8, color=FAINT)
        halves: Any = figure.subfigures(2, 1, height_ratios=[6, 0.6 + 0.3 * len(table)])
        top, bottom = halves
        sides: Any = top.subfigures(1, 2, width_ratios=[1.75, 1], wspace=0.02)
        draw_ranked(sides[0].subplots(), evaluations[0], images, queries=6, length=6)
        cmc, histogram = sides[1].subplots(2, 1)
        draw_cmc(cmc, evaluations)
        draw_histogram(histogram, evaluations[0])
        draw_table(bottom.subplots(), columns, table)
        figure.savefig(file := io.BytesIO(), format="png", dpi=100)
    return file.getvalue()


def draw_ranked(axes: Axes, evaluation: Evaluation, images: ImageSet, *, queries: int, length: int) -> None:
    """One row per query: the query, then its best candidates, marked with a tick or a cross."""
    axes.set_title(f"{evaluation.name}\n(queries chosen at random)", fontsize=10)
    axes.set_axis_off()
    shown = evaluation.ranked[:queries]
    for y, one in enumerate(shown):
        _draw_image(axes, images, one.query, -1.25, y)
        axes.text(-1.33, y + 0.46, _short(images, one.query), ha="right", va="center", fontsize=8, color=INK)
        for x, (row, hit) in enumerate(list(zip(one.gallery, one.hits, strict=True))[:length]):
            _draw_image(axes, images, row, x, y)
            color, mark, line = (HIT, "✓", "solid") if hit else (MISS, "✗", "dashed")
            axes.add_patch(Rectangle((x, y), 0.92, 0.92, fill=False, ec=color, lw=3 if hit else 1.6, ls=line))
            badge = {"boxstyle": "circle,pad=0.12", "fc": color, "ec": "white"}
            axes.text(x + 0.84, y + 0.1, mark, ha="center", va="center", fontsize=8, color="white", bbox=badge)
    for place, text in [(-1.25, "query"), *((float(x), str(x + 1)) for x in range(length))]:
        axes.text(place + 0.46, -0.12, text, ha="center", fontsize=9, color=FAINT)
    axes.set(xlim=(-2.9, length), ylim=(len(shown), -0.3), aspect="equal", anchor="NW")


def draw_table(axes: Axes, columns: list[str], table: Table) -> None:
    """Metrics in percent, one row per method. The best value of a column is bold and has a star."""
    axes.set_axis_off()
    places = [0.24 + (x + 1) * 0.76 / len(columns) for x in range(len(columns))]
    axes.text(0, 0, "Metrics, %", fontsize=11, weight="bold", color=INK)
    for place, column in zip(places, columns, strict=True):
        axes.text(place, 0, column, ha="right", fontsize=9.5, color=FAINT)
    for y, (name, cells) in enumerate(table, 1):
        axes.text(0, y, name, fontsize=10, color=INK)
        for place, (text, best) in zip(places, cells, strict=True):
            weight = "bold" if best else "normal"
            axes.text(place, y, f"★ {text}" if best else text, ha="right", fontsize=10, weight=weight, color=INK)
    axes.hlines([y - 0.72 for y in range(1, len(table) + 1)], 0, 1, color="#E4E4E4", lw=1)
    axes.set(xlim=(0, 1), ylim=(len(table) + 0.3, -0.6))


def draw_cmc(axes: Axes, evaluations: list[Evaluation]) -> None:
    for evaluation, look in zip(evaluations, _looks(evaluations), strict=True):
        axes.plot(range(1, len(evaluation.cmc) + 1), 100 * np.array(evaluation.cmc), label=evaluation.name, **look)
    axes.set(title="Cumulative matches (CMC)", xlabel="rank k", ylabel="queries with a match\namong the first k, %")
    axes.set(xscale="log", ylim=(0, 102), xticks=(ticks := [1, 2, 5, 10, 20, 50]), xticklabels=ticks)
    axes.minorticks_off()
    axes.legend(loc="best", fontsize=7, labelspacing=0.2, borderaxespad=0)


def draw_precision_recall(axes: Axes, evaluations: list[Evaluation]) -> None:
    for evaluation, look in zip(evaluations, _looks(evaluations), strict=True):
        axes.plot(100 * RECALL_GRID, 100 * np.array(evaluation.precision), label=evaluation.name, **look)
    axes.set(title="Precision and recall over all pairs", xlabel="recall, %", ylabel="precision, %")
    axes.set(xlim=(0, 100), ylim=(0, 102))
    axes.legend(fontsize=9)


def draw_histogram(axes: Axes, evaluation: Evaluation) -> None:
    """Score densities of same and different pairs. Each has area one, because there are far more different pairs."""
    edges = np.array(evaluation.bar_edges)
    for name, counts, color, hatch, line in (
        ("different identity", evaluation.different, MISS, "///", "--"),
        ("same identity", evaluation.same, HIT, "", "-"),
    ):
        pairs = sum(counts)
        density = np.array(counts) / max(1, pairs) / np.diff(edges)
        axes.stairs(density, edges, fill=True, color=color, alpha=0.25, hatch=hatch)
        axes.stairs(density, edges, color=color, linewidth=1.6, linestyle=line, label=f"{name}, {pairs:,} pairs")
    axes.set(title=f"Scores of all pairs\n{evaluation.name}", xlabel="score, larger is same", ylabel="density")
    axes.set(ylim=(0, 1.3 * axes.get_ylim()[1]))
    axes.legend(loc="upper left", fontsize=9)


def _looks(evaluations: list[Evaluation]) -> list[Any]:
    """A color and a line style for each method."""
    styles = [LINES[i % len(LINES)] for i in range(len(evaluations))]
    return [{"color": color, "linestyle": line, "linewidth": 2} for color, line in styles]


def _draw_image(axes: Axes, images: ImageSet, row: int, x: float, y: float) -> None:
    picture = images[row].permute(1, 2, 0).numpy()
    axes.imshow(picture, extent=(x, x + 0.92, y + 0.92, y), interpolation="lanczos")


def _short(images: ImageSet, row: int) -> str:
    """The identity, and the camera if there is more than one."""
    name = images.label_names[int(images.labels[row])]
    shortened = name if len(name) <= 18 else f"{name[:17]}…"
    if len(images.camera_names) == 1:
        return shortened
    return f"{shortened}\n{images.camera_names[int(images.cameras[row])]}"
