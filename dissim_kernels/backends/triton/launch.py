"""Kernel launches: on the tensors' device and torch's current stream, with a tile size from the tuning table.

A launch has a one-dimensional grid. A kernel computes its place from the program number, first axis fastest:

    program = block of axis 0 + blocks of axis 0 * (block of axis 1 + blocks of axis 1 * copy)

`copy` counts what is not tiled: batch entries, heads, and splits of the columns.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton

from .tuning import AXES, tile_for

#: Whether kernels run in the interpreter. Triton reads the environment when a kernel is defined.
INTERPRETED = bool(triton.knobs.runtime.interpret)

#: If there are few tiles, the columns are divided into splits, up to this many programs: a few for each SM.
TARGET_PROGRAMS = 512
#: A split has at least this many columns, and a multiple of it.
MIN_SPLIT_COLUMNS = 256


def launch(kernel: Any, name: str, axes: tuple[str, ...], copies: int, acc: torch.dtype, **arguments: Any) -> None:
    """Launches the programs that cover `axes` of the problem, `copies` times.

    name: the kernel's name in the tuning table. acc: its accumulator dtype. Every kernel has the arguments rows,
    columns, dim and out.
    """
    device = arguments["out"].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        problem = {axis: arguments[axis] for axis in AXES}
        sizes, num_warps, num_stages = tile_for(name, acc, None if INTERPRETED else _architecture(), problem)
        programs = copies * math.prod(triton.cdiv(arguments[axis], sizes[AXES[axis]]) for axis in axes)
        options = dict(
            num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True
        )  # Triton 3.9 warns if it is not set
        kernel[(programs,)](**arguments, **sizes, **options)


def _architecture() -> int | None:
    """The architecture of the current device as in the tuning table: 80, 90, 100; None for AMD."""
    target = triton.runtime.driver.active.get_current_target()
    return target.arch // 10 * 10 if target.backend == "cuda" else None


def column_splits(programs: int, columns: int, max_splits: int) -> tuple[int, int]:
    """Columns per split and number of splits, at most max_splits, for a kernel with so many programs per split."""
    splits = max(1, min(TARGET_PROGRAMS // programs, max_splits, columns // MIN_SPLIT_COLUMNS))
    size = triton.cdiv(triton.cdiv(columns, splits), MIN_SPLIT_COLUMNS) * MIN_SPLIT_COLUMNS
    return size, triton.cdiv(columns, size)
