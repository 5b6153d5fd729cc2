"""Draws the speed of six benchmark cases from bench/results/cpu.json and prints the results table of README.md.

python docs/figures/speed.py       writes docs/images/speed.png

A dot is the median over the rounds, a line spans the slowest and the fastest round, a tick is the peak.
"""

import json
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "cpu.json"
OUT = ROOT / "docs" / "images" / "speed.png"

#: Name in the results -> name in the picture. Four cases that users run most, and the two where others are as fast.
CASES = {
    "score fp32 4096": "scores, 4,096 x 4,096",
    "forward+backward fp32 4096": "scores and gradients, 4,096 x 4,096",
    "hinge step, all negatives active": "hinge loss and gradients, 512 x 16,384, all negatives active",
    "top-10 of 200,000": "top-10 of 200,000, 256 queries",
    "one query of 1,000,000": "scores, 1 x 1,000,000, D = 128",
    "small 64 x 64 x 512": "scores, 64 x 64 (a small call)",
}
#: Names in the results that need an explanation or are too long.
NAMES = {
    "numba, 4 x 2 in registers": "numba, tiled by hand",
    "numba, 4 x 2, torch.topk": "numba, tiled by hand + topk",
    "numba, by hand (E2)": "numba, gradient by hand",
    "torch.cdist, two calls (E8)": "torch.cdist, two calls",
    "torch.compile score, topk": "torch.compile + topk",
    "FAISS IndexFlat, L1": "FAISS IndexFlat L1",
    "FAISS, L1": "FAISS L1",
}
OTHERS_SHOWN = 3
OURS, PEAK, INK, FAINT = "#009E73", "#D55E00", "#222222", "#666666"


class Measured(NamedTuple):
    """Rates in Gelem/s: billions of terms abs(q_d - r_d) per second."""

    name: str
    ours: bool
    one_sign: bool
    queries: int
    median: float
    slowest: float
    fastest: float
    peak: float

    @property
    def rate(self) -> str:
        """The median with three digits, also where the last is 0."""
        return f"{self.median:#.3g}".rstrip(".")

    @property
    def label(self) -> str:
        return NAMES.get(self.name, self.name) + (" (one sign)" if self.one_sign else "")


def measured(entry: dict) -> Measured:
    facts, times = entry["extra_info"], entry["stats"]["data"]
    giga = facts["elements"] / 1e9
    return Measured(
        entry["name"],
        facts["ours"],
        facts["one_sign"],
        facts["queries"],
        giga / entry["stats"]["median"],
        giga / max(times),
        giga / min(times),
        facts["peak"] / 1e9,
    )


def environment_summary() -> str:
    facts = json.loads(RESULTS.read_text())["machine_info"]
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['isa']}; torch {facts['torch']}; commit {facts['commit']}"


def load() -> dict[str, list[Measured]]:
    """Ours and the best others of each case, the fastest first."""
    entries = json.loads(RESULTS.read_text())["benchmarks"]
    cases = {}
    for case in CASES:
        rows = [measured(entry) for entry in entries if entry["group"] == case]
        ours = [row for row in rows if row.ours]
        others = sorted((row for row in rows if not row.ours), key=lambda row: -row.median)
        cases[case] = sorted([*ours, *others[:OTHERS_SHOWN]], key=lambda row: -row.median)
    return cases


def table(cases: dict[str, list[Measured]]) -> list[str]:
    """The lines of the results table of README.md."""
    lines = [
        "| case | ours, Gelem/s | of the peak | best other, Gelem/s | ours / best other |",
        "|---|---|---|---|---|",
    ]
    for case, rows in cases.items():
        ours = next(row for row in rows if row.ours)
        best = next(row for row in rows if not row.ours)
        ratio = ours.median / best.median
        lines.append(
            f"| {CASES[case]} | {ours.rate} | {ours.median / ours.peak:.0%} | {best.label}: {best.rate} | "
            f"{ratio:.2g} |"
        )
    return lines


def panel(axes: Axes, title: str, rows: list[Measured]) -> None:
    all_queries = max(row.queries for row in rows)
    right_of_axes = axes.get_yaxis_transform()  # x in fractions of the axes, y in rows
    for y, row in enumerate(rows):
        color, weight = (OURS, "bold") if row.ours else (INK, "normal")
        axes.plot([row.slowest, row.fastest], [y, y], color=color, lw=7, alpha=0.35, solid_capstyle="butt")
        axes.plot(row.median, y, marker="D" if row.ours else "o", color=color, ms=6)
        axes.text(1.09, y, row.rate, transform=right_of_axes, ha="right", va="center_baseline", weight=weight)
        if row.queries < all_queries:
            part = f"{row.queries} of {all_queries:,} queries"
            axes.text(1.11, y, part, transform=right_of_axes, va="center_baseline", fontsize=10, color=FAINT)
    axes.axvline(rows[0].peak, color=PEAK, ls="--", lw=1.5)
    axes.set_title(title, loc="left", weight="bold", color=INK, x=-0.49, pad=2)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set(weight="bold" if row.ours else "normal", color=OURS if row.ours else INK)
    axes.set(xscale="log", xlim=(0.4, 330), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.minorticks_off()
    axes.grid(axis="x", color="#DDDDDD")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def draw(cases: dict[str, list[Measured]], machine: str) -> None:
    with rc_context({"font.size": 11, "axes.titlesize": 12, "xtick.labelsize": 11, "ytick.labelsize": 11}):
        figure = Figure(figsize=(10, 8.2))
        grid = {"left": 0.26, "right": 0.77, "top": 0.925, "bottom": 0.09, "hspace": 0.36}
        axes = figure.subplots(len(cases), 1, sharex=True, gridspec_kw=grid)
        for axis, (case, rows) in zip(axes, cases.items(), strict=True):
            panel(axis, CASES[case], rows)
        axes[0].text(1.09, -1.1, "median", transform=axes[0].get_yaxis_transform(), ha="right", color=FAINT)
        axes[0].text(1.11, -1.1, "measured on", transform=axes[0].get_yaxis_transform(), color=FAINT)
        axes[-1].set_xlabel("Gelem/s (billions of |q_d - r_d| terms per second), log scale; further right is faster")
        figure.text(0.01, 0.008, f"float32, D = 512 unless stated. {machine}", fontsize=10, color=FAINT)
        key = [
            Line2D([], [], color=OURS, marker="D", ls="", label="median of 7 rounds"),
            Line2D([], [], color=OURS, lw=7, alpha=0.35, label="slowest to fastest round"),
            Line2D([], [], color=PEAK, ls="--", lw=1.5, label="peak of our instructions, or of memory"),
        ]
        figure.legend(handles=key, loc="upper left", ncols=3, frameon=False, fontsize=11)
        figure.savefig(OUT, dpi=160, facecolor="white")


if __name__ == "__main__":
    found = load()
    draw(found, environment_summary())
    print("\n".join(table(found)))
    print(OUT)
