"""Measures and draws the memory that scoring N x N pairs takes beyond the inputs: plain torch, torch.cdist, ours.

python docs/figures/memory.py      some minutes; writes docs/images/memory.json and docs/images/memory.png

Each point is a fresh process on the CPU: the rise of its peak resident memory during one call. torch.cdist knows no
weights of two signs, so it is called twice, once for each sign (E8 of MATH.md).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "images"
DIM = 256
#: Way -> sizes N = M. Plain torch stops where a process would take more than 8 GiB.
SIZES = {
    "plain torch": [256, 512, 1024],
    "torch.cdist, twice": [256, 512, 1024, 2048, 4096],
    "dissim_kernels": [256, 512, 1024, 2048, 4096],
}
LOOK = {
    "plain torch": ("#D55E00", "o", "--"),
    "torch.cdist, twice": ("#0072B2", "s", "-."),
    "dissim_kernels": ("#009E73", "D", "-"),
}
WHAT = {"scores": "scores", "gradients": "scores and gradients"}

PROBE = """
import json, resource, sys, torch
from dissim_kernels import fused_dissim_score
way, what, rows, dim = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def plain(query, reference, weight):
    return torch.nn.functional.linear((query[:, None] - reference[None]).abs(), weight)

def cdist(query, reference, weight):
    positive, negative = weight.clamp(min=0), (-weight).clamp(min=0)
    parts = [torch.cdist(query * w, reference * w, p=1) for w in (positive, negative)]
    return parts[0] - parts[1]

function = {"plain torch": plain, "torch.cdist, twice": cdist, "dissim_kernels": fused_dissim_score}[way]

def inputs(rows):
    torch.manual_seed(0)
    tensors = torch.randn(rows, dim), torch.randn(rows, dim), torch.randn(dim)
    return [x.requires_grad_(what == "gradients") for x in tensors]

def call(tensors):
    scores = function(*tensors)
    if what == "gradients":
        scores.backward(scores.detach())
    return scores

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

call(inputs(64))  # code, threads and operators are loaded
tensors = inputs(rows)
resident = int(open("/proc/self/statm").read().split()[1]) << 12
filler = torch.zeros(max(0, peak() - resident) // 4)  # reach the old peak, so that whatever follows raises it
before = peak()
call(tensors)
print(json.dumps(peak() - before))
"""


def extra_bytes(way, what, rows):
    settings = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "65536"}
    arguments = [sys.executable, "-c", PROBE, way, what, str(rows), str(DIM)]
    return json.loads(subprocess.check_output(arguments, env=settings, text=True))


def measure():
    """{what: {way: [[N, bytes], ...]}}"""
    return {
        what: {way: [[rows, extra_bytes(way, what, rows)] for rows in sizes] for way, sizes in SIZES.items()}
        for what in WHAT
    }


def draw(measured):
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (what, title) in zip(figure.subplots(1, 2, sharey=True), WHAT.items(), strict=True):
        for way, points in measured[what].items():
            color, marker, line = LOOK[way]
            rows, sizes = zip(*points, strict=True)
            axes.plot(rows, [size / 2**20 for size in sizes], color=color, marker=marker, ls=line, lw=2, label=way)
            if rows[-1] < max(SIZES["dissim_kernels"]):
                place = (rows[-1], sizes[-1] / 2**20)
                text = "larger: not run,\n8 GiB or more"
                axes.annotate(text, place, (10, 4), textcoords="offset points", fontsize=12, color=color)
        rows = SIZES["dissim_kernels"]
        axes.plot(
            rows, [4 * n * n / 2**20 for n in rows], color="#8A8A8A", ls=":", lw=1.5, label="size of the N x N scores"
        )
        axes.set(xscale="log", yscale="log", xlim=(220, 5000), ylim=(0.2, 4e4))
        axes.set_xlabel("N = M, rows of each side", fontsize=13)
        axes.set_title(title, loc="left", fontsize=14, weight="bold")
        axes.set_xticks(rows, [f"{n:,}" for n in rows], fontsize=12)
        axes.set_yticks([1, 10, 100, 1024, 10240], ["1 MiB", "10 MiB", "100 MiB", "1 GiB", "10 GiB"], fontsize=12)
        axes.minorticks_off()
        axes.grid(color="#E4E4E4")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=13, frameon=False)
    figure.suptitle(f"Memory beyond the inputs, float32, D = {DIM}", x=0.01, ha="left", fontsize=14)
    figure.savefig(IMAGES / "memory.png", dpi=160, facecolor="white")


if __name__ == "__main__":
    results = measure()
    (IMAGES / "memory.json").write_text(json.dumps({"dim": DIM, "bytes": results}, indent=1) + "\n")
    draw(results)
    print(IMAGES / "memory.png")
