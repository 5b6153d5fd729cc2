"""Compiles every Triton kernel that the operations launch, without a GPU, and prints which fail.

    python tests/triton_compile.py [sm_80 sm_90 gfx942]

It uses the Triton that Python finds first: PYTHONPATH=FOLDER selects one that
`pip install --no-deps --target FOLDER triton==3.6.0` installed. The operations run on CPU tensors, but a launch only
compiles its kernel. Exit code 1 if a kernel fails, or if one of the tuning table is not launched.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from dissim_kernels.backends import triton as backend
from dissim_kernels.backends.triton.tuning import TABLE
from dissim_kernels.contract import (
    ACCUMULATE,
    HingeArguments,
    HingeBackwardArguments,
    LogSumExpArguments,
    LogSumExpBackwardArguments,
    RankArguments,
    TopKArguments,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Driver:
    """Triton's driver of a GPU that does not exist."""

    def __init__(self, target: GPUTarget, device: int) -> None:
        self.target, self.device = target, device

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(target: GPUTarget, device: int) -> tuple[set[tuple[str, str]], dict[str, str]]:
    """Names and hashes of the kernels that compile, and errors of those that do not.

    device: a different number for each target, because Triton caches compiled kernels by device.
    """
    compiled, failed, run = set(), {}, JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **options):
        try:
            compiled.add((kernel.__name__, run(kernel, *args, grid=grid, warmup=True, **options).hash))
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__
            failed.setdefault(kernel.__name__, f"{type(error).__name__}: {error}")

    triton.runtime.driver.set_active(Driver(target, device))
    JITFunction.run = compile_only
    try:
        for dtype in ACCUMULATE:
            # Full packed tiles with all optional arguments; small tiles, not packed, without them.
            run_operations(dtype, 256, 512, 512, k=32, optional=True)
            run_operations(dtype, 3, 40, 72, k=1, optional=False)
            run_search(dtype, 3, 40, 72, k=33, optional=False)  # more than are selected in registers
        for k in (1, 2, 4, 8, 16):
            run_search(torch.float32, 40, 300, 72, k, optional=False)
    finally:
        JITFunction.run = run
    return compiled, failed


def run_operations(dtype: torch.dtype, rows: int, columns: int, dim: int, k: int, optional: bool) -> None:
    """Runs every operation and its gradients. optional: with two batches and heads, bias, filters, hard negatives."""
    search, copies = run_search(dtype, rows, columns, dim, k, optional), 2 if optional else 1
    sides = [x.repeat(copies, 1, 1) for x in search[:2]]
    weight, bias = search.weight.repeat(copies, 1), search.bias.repeat(copies) if optional else None
    backend.score(*sides, weight, bias)
    backend.score_backward(torch.ones(copies, copies, rows, columns, dtype=dtype), *sides, weight, (True,) * 3)
    labels = torch.arange(rows) % 5, torch.arange(columns) % 5
    *_, active = backend.hinge(
        HingeArguments(*search[:4], *labels, search.exclude_index, 1.0, k if optional else None)
    )
    grad = torch.ones(rows, dtype=ACCUMULATE[dtype])
    backend.hinge_backward(HingeBackwardArguments(grad, grad, active, *search[:3], *labels), (True,) * 4)
    pairs, scale = search[:4], torch.ones(1, dtype=ACCUMULATE[dtype])
    filters = (*labels, search.exclude_index, "different") if optional else (None, None, None, "all")
    value, _, active = backend.logsumexp(LogSumExpArguments(*pairs, scale, *filters))
    backend.logsumexp_backward(LogSumExpBackwardArguments(grad, value, active, *pairs, scale), (True,) * 3)
    offsets, indices = torch.arange(rows + 1), torch.zeros(rows, dtype=torch.int64)  # one listed pair a query
    scores = backend.listed_scores(*pairs, offsets, indices)
    backend.rank(RankArguments(*pairs, offsets, indices, scores))


def run_search(dtype: torch.dtype, rows: int, columns: int, dim: int, k: int, optional: bool) -> TopKArguments:
    query, reference, weight = (torch.ones(*shape, dtype=dtype) for shape in ((rows, dim), (columns, dim), (dim,)))
    labels = (torch.arange(rows) % 5, torch.arange(columns) % 5) if optional else (None, None)
    bias, exclude_index = (weight[:1], torch.arange(rows)) if optional else (None, None)
    search = TopKArguments(query, reference, weight, bias, k, optional, exclude_index, *labels)
    backend.topk(search)
    return search


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(TARGETS)}; default: all")
    targets = parser.parse_args().targets or list(TARGETS)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    wrong = 0
    for device, name in enumerate(targets):
        start = time.perf_counter()
        compiled, failed = compile_all(TARGETS[name], device)
        launched = {kernel for kernel, _ in compiled} | set(failed)
        missing = {f"{case.kernel}_kernel" for case in TABLE} - launched
        print(
            f"Triton {triton.__version__}, {name}: {len(compiled)} kernels compile, {len(failed)} fail, "
            f"{len(missing)} were not launched, {time.perf_counter() - start:.0f} s"
        )
        for text in itertools.chain((f"{kernel}: {error}" for kernel, error in failed.items()), sorted(missing)):
            print(f"  {text}")
        wrong += len(failed) + len(missing)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
