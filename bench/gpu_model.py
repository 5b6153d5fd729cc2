"""How long GPU kernels should take, from what was counted and what data sheets promise: `python -m bench.gpu_model`.

Predicted, not measured: no figure here comes from a clock. A kernel's time is the longest of what its instructions
take to issue, what each unit takes for its share of them, and what its bytes take to move, plus its launches. Not in
the model: latency that too few warps leave exposed, bank conflicts, the last wave of blocks, what the cache saves or
costs, and clocks below the boost clock. So a prediction is a floor, ours and a peer's alike.

`--write` puts the tables into bench/results/gpu_predicted.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dissim_retrieval.atomic import atomic_write

from .budgets import ARCHITECTURES, BUDGETS
from .cases import GPU_CASES, Case
from .report import grid
from .sass import count
from .toolchain import ROOT, why_not

QUARTERS, WARP = 4, 32
#: What a launch adds, assumed; a CUDA graph leaves about this much.
LAUNCH_SECONDS = 3e-6


@dataclass(frozen=True)
class Gpu:
    """From the vendor's data sheet: multiprocessors, TFLOPS of float32 without matrix units, TB/s of memory. The
    boost clock is the one that gives these TFLOPS. Rates of units: instructions of a warp per clock and
    multiprocessor, from the CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions"."""

    name: str
    arch: int
    multiprocessors: int
    float32_tflops: float
    terabytes: float
    rates: Mapping[str, float]

    @property
    def clock(self) -> float:
        return self.float32_tflops * 1e12 / (2 * WARP * self.rates["float"] * self.multiprocessors)

    def clocks(self, opcodes: Mapping[str, float]) -> dict[str, float]:
        """Clocks of a multiprocessor that a warp's instructions take to issue, and of every unit."""
        found = {"issue": sum(opcodes.values()) / QUARTERS}
        for unit, names in UNITS.items():
            found[unit] = sum(opcodes.get(name, 0) * weight for name, weight in names.items()) / self.rates[unit]
        return found


#: Units and what an instruction takes of them. Two packed operations are two; a load of shared memory at least one
#: clock; a matrix product m16n8k16 one. That HMNMX2 and VABSDIFF4 run where integers are compared is assumed.
FLOAT = ("FADD", "FFMA", "FMUL", "HADD2", "HFMA2", "IMAD")
INTEGER = (
    *("IADD3", "VIADD", "LOP3", "LEA", "SHF", "PRMT", "SEL", "ISETP", "MOV"),
    *("FSETP", "FSET", "FSEL", "FMNMX", "HMNMX2", "IMNMX", "VIMNMX", "VIADDMNMX", "VABSDIFF4"),
)
UNITS = {
    "float": dict.fromkeys(FLOAT, 1) | dict.fromkeys(("FADD2", "FFMA2", "FMUL2"), 2),
    "integer": dict.fromkeys(INTEGER, 1),
    "double": dict.fromkeys(("DADD", "DFMA", "DMUL", "DSETP"), 1),
    "shared memory": dict.fromkeys(("LDS", "STS", "LDSM", "LDGSTS", "LDG"), 1),
    "matrix": {"HMMA": 1},
}
#: Bytes that the L2 cache gives in a clock, of the A100 by its whitepaper; of the others none is given.
L2_BYTES = 5120
A100 = {"float": 2, "integer": 2, "double": 1, "shared memory": 1, "matrix": 0.5}
H100 = {"float": 4, "integer": 2, "double": 2, "shared memory": 1, "matrix": 1}

#: Vendor data sheets: "A100 80GB SXM", "H100 SXM", "H200 SXM", "HGX B200" (of eight, one eighth).
GPUS = (
    Gpu("A100", 80, 108, 19.5, 2.039, A100),
    Gpu("H100", 90, 132, 67.0, 3.35, H100),
    Gpu("H200", 90, 132, 67.0, 4.8, H100),
    Gpu("B200", 100, 148, 75.0, 7.7, H100),
)


@dataclass(frozen=True)
class Work:
    """A kernel on its way through a case: how often each instruction runs for an element, by architecture, and for
    what share of the elements; bytes that each takes from the L2 cache, where that may be the limit. Where an
    architecture is missing, a peer's binary has none for it and another's counts stand for it."""

    opcodes: Mapping[int, Mapping[str, float]]
    share: float = 1.0
    launches: int = 1
    l2_bytes: float = 0

    def of(self, arch: int) -> Mapping[str, float]:
        return self.opcodes.get(arch) or next(iter(self.opcodes.values()))


@dataclass(frozen=True)
class Contender:
    name: str
    works: tuple[Work, ...]


@dataclass(frozen=True)
class Prediction:
    seconds: float
    bound: str


def predict(case: Case, contender: Contender, gpu: Gpu) -> Prediction:
    moved = case.bytes / (gpu.terabytes * 1e12)
    busy: Counter[str] = Counter()
    for work in contender.works:
        clocks = gpu.clocks(work.of(gpu.arch))
        clocks["L2"] = work.l2_bytes * WARP / L2_BYTES * gpu.multiprocessors
        unit = max(clocks, key=lambda name: clocks[name])
        warps = case.elements * work.share / WARP
        busy[unit] += warps * clocks[unit] / (gpu.multiprocessors * gpu.clock)
    arithmetic, launches = busy.total(), sum(work.launches for work in contender.works)
    bound = "memory" if moved > arithmetic else busy.most_common(1)[0][0]
    return Prediction(max(moved, arithmetic) + launches * LAUNCH_SECONDS, bound)


# --- who is predicted ----------------------------------------------------------------------------------------------

#: Counted once with machine_code.py in binaries that install by pip. torch.cdist's loop, without the reduction of a
#: block that follows each pair, which favours it; one call, the split E8 makes two.
CDIST = {90: {"LDG": 2, "FADD": 2, "IADD3": 4, "IMAD": 3, "MOV": 1, "ISETP": 2, "BRA": 1}}
#: A tile of 32 dimensions of FAISS's general distance.
FAISS = {80: {"LDS": 64 / 32, "FADD": 64 / 32, "IMAD": 7 / 32, "LEA": 5 / 32, "IADD3": 4 / 32, "other": 22 / 32}}
SEARCH = Contender("FAISS general L1 distance without its selection (one sign, E11)", (Work(FAISS, launches=3),))
#: operation -> peers. Their gradients are not here: torch.cdist's needs a buffer of N x M x D.
PEERS = {
    "score": (
        Contender("torch.cdist, two calls (E8); torch 2.14.1 for sm_90", (Work(CDIST, 2.0, launches=5),)),
        Contender("FAISS general L1 distance (one sign, E11); faiss-gpu-cu12 1.14.1 for sm_80", (Work(FAISS),)),
    ),
    "topk": (SEARCH,),
    "certified": (SEARCH,),
}
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
#: backend -> operation -> the budgets of its kernels, less the dtype, and their launches with those of torch beside.
CUDA = {
    "score": (("score", 1),),
    "score_backward": (("score_backward", 11),),
    "topk": (("topk", 2),),
    "certified": (("certified", 16),),  # the scan, for 256 queries at a time, and three kernels that follow it
    "hinge_step": (("hinge", 2), ("hinge_backward", 15)),
    "hinge_step, few active": (("hinge", 2), ("hinge_backward few query", 8), ("hinge_backward few reference", 7)),
}
TRITON = {
    "score": (("triton score", 1), ("triton score max", 3)),
    "score_backward": (("triton score_backward query", 7), ("triton score_backward reference", 7)),
    "topk": (("triton topk", 2),),
    "certified": (),
    "hinge_step": (
        ("triton hinge", 2),
        ("triton hinge_backward query", 15),
        ("triton hinge_backward reference", 15),
    ),
    "hinge_step, few active": (
        ("triton hinge", 2),
        ("triton hinge_backward few query", 15),
        ("triton hinge_backward few reference", 15),
    ),
}
KERNELS = {
    backend: kernels | {"score_step": kernels["score"] + kernels["score_backward"]}
    for backend, kernels in (("CUDA", CUDA), ("Triton", TRITON))
}


#: The share of active pairs up to which they are worked off one by one (kFewPairs in csrc/cuda, FEW in Triton).
FEW = 1 / 16


def kernels_of(case: Case, kernels: Mapping[str, tuple[tuple[str, int], ...]]) -> tuple[tuple[str, int], ...]:
    few = f"{case.operation}, few active" if case.active <= FEW else ""
    return kernels.get(few, kernels[case.operation])


def ours(case: Case, counts: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[Contender]:
    """A contender for each backend with its kernels of a case; counts: budget -> arch -> per element. A step
    has one kernel, or another that takes maxima (E7); a backend that lacks a step is left out."""
    found = []
    for backend, kernels in KERNELS.items():
        chosen = kernels_of(case, kernels)
        works, steps = [], {kernel.removesuffix(" max") for kernel, _ in chosen}
        for kernel, runs in chosen:
            name = f"{kernel} {DTYPES[case.dtype]}"
            if name in counts:
                few = {"share": case.active, "l2_bytes": 4} if " few " in name else {}
                works.append(Work(counts[name], launches=runs, **few))
                steps.discard(kernel.removesuffix(" max"))
        if works and not steps:
            found.append(Contender(f"**dissim_kernels, {backend}**", tuple(works)))
    return found


def counted() -> dict[str, dict[int, dict[str, float]]]:
    """Instructions per element of every kernel that has a budget and takes part in a case."""
    used = {
        f"{kernel} {DTYPES[case.dtype]}"
        for case in GPU_CASES
        for kernels in KERNELS.values()
        for kernel, _ in kernels_of(case, kernels)
    }
    found: dict[str, dict[int, dict[str, float]]] = {}
    for budget, arch in itertools.product((row for row in BUDGETS if row.name in used), ARCHITECTURES):
        loop = count(budget, arch).loop
        per_element = {name: number / loop.elements for name, number in loop.opcodes.items()}
        found.setdefault(budget.name, {})[arch] = per_element
    return found


HEAD = """# GPU kernels, predicted, not measured

No figure here comes from a clock. A time is the longest of what a kernel's instructions take to issue, what each unit
takes for its share of them and what the bytes that nobody avoids take to move, and {launch:g} us for each launch,
assumed. Instructions are counted in machine code (`python -m bench.sass`; peers: in binaries from PyPI, where one
lacks an architecture another's counts stand for it). Multiprocessors, float32 rate and bandwidth are those of the
vendor data sheet, the clock is the one that gives that rate; units as in the CUDA C++ Programming Guide. Not in the
model: latency that too few warps leave exposed, bank conflicts, the last wave of blocks, what caches save or cost
(but for rows of single active pairs, which the L2 cache gives at {l2:,} bytes a clock: the A100's by its whitepaper,
of the others none is given), clocks below the boost clock, the look for active bits. Of a certified search the scan
over bytes is counted, not the rows that it leaves to score. So each is a floor, and ours may be farther from the
truth than a peer's. Peers left out: torch.compile, KeOps and cuVS 26.10 compile their kernels when they run.

| GPU | multiprocessors | clock, GHz | float32, TFLOPS | memory, TB/s |
| --- | --- | --- | --- | --- |
{gpus}
"""


def document() -> str:
    gpus = "\n".join(
        f"| {g.name} | {g.multiprocessors} | {g.clock / 1e9:.2f} | {g.float32_tflops:g} | {g.terabytes:g} |"
        for g in GPUS
    )
    parts, counts = [HEAD.format(launch=LAUNCH_SECONDS * 1e6, l2=L2_BYTES, gpus=gpus)], counted()
    for case in (case for case in GPU_CASES if case.queries > 1):  # few queries do not go by tiles
        rows = [(c.name, [predict(case, c, gpu) for gpu in GPUS]) for c in contenders(case, counts)]
        if not rows:
            continue
        size = f"N={case.queries:,} M={case.references:,} D={case.dim} {case.dtype}"
        cells = [[name, *(f"{p.seconds * 1e3:.3g} ({p.bound})" for p in found)] for name, found in rows]
        titles = ("predicted, not measured", *(f"{gpu.name}, ms" for gpu in GPUS))
        parts.append(f"## {case.name}, {size}: predicted, not measured\n\n{grid(titles, cells)}\n")
    return "\n".join(parts)


def contenders(case: Case, counts: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[Contender]:
    peers = PEERS.get(case.operation, ()) if case.dtype == "float32" else ()
    return [*ours(case, counts), *peers]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_model", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write bench/results/gpu_predicted.md")
    options = parser.parse_args()
    if missing := why_not("nvcc", "cuobjdump", "nvdisasm"):
        sys.exit(f"bench.gpu_model: {missing}")
    text = document()
    print(text)
    if options.write:
        with atomic_write(ROOT / "bench" / "results" / "gpu_predicted.md") as file:
            file.write(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
