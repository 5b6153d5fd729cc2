"""Runs the Python of docs/tutorial.md and draws its pictures from what it found.

python docs/figures/tutorial.py        writes docs/images/tutorial_data.png and docs/images/tutorial_ranked.png
"""

import os
import re
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DOCS = Path(__file__).parents[1]
HIT, MISS, INK = "#009E73", "#D55E00", "#222222"


def run_page():
    """The namespace after all blocks of the page, run in an empty folder."""
    namespace = {"__name__": "__main__"}
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.M | re.S)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in blocks:
            exec(block, namespace)
        os.chdir(DOCS)
    return namespace


def grid(rows, columns):
    figure = Figure(figsize=(10, 10 * rows / columns))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    return figure, axes


def show(axes, images, row, x, y):
    pixels = images.images[row].permute(1, 2, 0).numpy()
    axes.imshow(pixels, extent=(x + 0.05, x + 0.95, y + 0.95, y + 0.05), interpolation="lanczos", aspect="auto")


def draw_data(images):
    """Six characters, a row each, in eight fonts."""
    generator = torch.Generator().manual_seed(4)
    characters = torch.randperm(len(images.label_names), generator=generator)[:6].tolist()
    figure, axes = grid(6, 8)
    for y, character in enumerate(characters):
        rows = torch.nonzero(images.labels == character)[:, 0]
        for x, row in enumerate(rows[torch.linspace(0, len(rows) - 1, 8).long()].tolist()):
            show(axes, images, row, x, y)
            axes.add_patch(Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, ec="#CCCCCC", lw=1))
    axes.set(xlim=(0, 8), ylim=(6, 0))
    figure.savefig(DOCS / "images" / "tutorial_data.png", dpi=120, facecolor="white")


def draw_ranked(images, queries, found, hits):
    """Every second query with its eight best rows, so that queries are not chosen by success."""
    chosen = range(1, len(queries), 2)
    figure, axes = grid(len(chosen) + 0.4, 9.4)
    for place, text in [(0.5, "query"), *((1.9 + x, str(x + 1)) for x in range(8))]:
        axes.text(place, 0.25, text, ha="center", va="center", fontsize=14, color=INK)
    for line, query in enumerate(chosen):
        y = line + 0.4
        show(axes, images, queries[query], 0, y)
        for x, (row, hit) in enumerate(zip(found.ids[query].tolist(), hits[query].tolist(), strict=True)):
            show(axes, images, row, x + 1.4, y)
            color, mark, style = (HIT, "✓", "solid") if hit else (MISS, "✗", "dashed")
            frame = (x + 1.47, y + 0.07), 0.86, 0.86
            axes.add_patch(Rectangle(*frame, fill=False, ec=color, lw=2.5 if hit else 2, ls=style))
            badge = {"boxstyle": "circle,pad=0.15", "fc": color, "ec": "white"}
            axes.text(x + 2.25, y + 0.16, mark, ha="center", va="center", fontsize=11, color="white", bbox=badge)
    axes.set(xlim=(0, 9.4), ylim=(len(chosen) + 0.4, 0))
    figure.savefig(DOCS / "images" / "tutorial_ranked.png", dpi=120, facecolor="white")


if __name__ == "__main__":
    page = run_page()
    draw_data(page["train"])
    draw_ranked(page["test"], page["queries"], page["found"], page["hits"])
