"""Draws the idea of the project: a pair becomes |q - r|, and a linear classifier scores it.

python docs/figures/idea.py        writes docs/images/idea.png
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUT = Path(__file__).parents[1] / "images" / "idea.png"
QUERY, REFERENCE, INK, FAINT, SAME, DIFFERENT = "#0072B2", "#E69F00", "#222222", "#8A8A8A", "#009E73", "#D55E00"
TITLES = [(1.25, "two embeddings"), (4.1, "absolute difference"), (6.65, "linear classifier"), (9.12, "decision")]
#: (query, reference): the first pair is near, the second is not.
PAIRS = [([6, 2, 5, 1, 4], [5, 2, 6, 1, 4]), ([6, 2, 5, 1, 4], [1, 6, 4, 5, 0])]
WEIGHT, BIAS = np.array([-0.6, -0.4, 0.2, -0.5, -0.3]), 1.0


def bars(axes, x, y, values, color, label):
    """A vector as five bars, with its name below."""
    for i, value in enumerate(values):
        axes.bar(x + 0.2 * i, 0.13 * value + 0.02, 0.15, bottom=y, color=color)
    axes.plot([x - 0.12, x + 0.92], [y, y], color=FAINT, lw=1)
    axes.text(x + 0.4, y - 0.1, label, ha="center", va="top", fontsize=14, color=INK)


def arrow(axes, start, end, y):
    axes.add_patch(FancyArrowPatch((start, y), (end, y), arrowstyle="-|>", mutation_scale=18, color=INK, lw=1.5))


def draw():
    figure = Figure(figsize=(10, 3.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(-0.35, 3.4))
    axes.set_axis_off()
    for x, title in TITLES:
        axes.text(x, 3.1, title, ha="center", fontsize=15, weight="bold", color=INK)
    for y, (query, reference) in zip((1.95, 0.55), PAIRS, strict=True):
        difference, middle = np.abs(np.subtract(query, reference)), y + 0.35
        score = float(WEIGHT @ difference + BIAS)
        bars(axes, 0.2, y, query, QUERY, "q")
        bars(axes, 1.5, y, reference, REFERENCE, "r")
        arrow(axes, 2.65, 3.45, middle)
        bars(axes, 3.7, y, difference, INK, "u = |q - r|")
        arrow(axes, 4.85, 5.65, middle)
        axes.text(6.65, middle, f"s = w · u + b\n= {score:+.1f}", ha="center", va="center", fontsize=15, color=INK)
        arrow(axes, 7.6, 8.3, middle)
        color, text = (SAME, "✓ same") if score > 0 else (DIFFERENT, "✗ different")
        style = "round,pad=0.06"
        axes.add_patch(FancyBboxPatch((8.42, middle - 0.25), 1.4, 0.5, boxstyle=style, fc="white", ec=color, lw=2.5))
        axes.text(9.12, middle, text, ha="center", va="center", fontsize=15, color=color, weight="bold")
    caption = "w and b are learned together with the network that computes q and r. Weights may have either sign."
    axes.text(5, -0.2, caption, ha="center", fontsize=13, color=INK)
    figure.savefig(OUT, dpi=160, facecolor="white")


if __name__ == "__main__":
    draw()
    print(OUT)
