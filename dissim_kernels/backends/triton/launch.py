"""How kernels are launched: on the tensors' device and torch's current stream, with a tile from the tuning table."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton

from .tuning import AXES, tile_for

#: Triton decides it when a kernel is defined.
INTERPRETED = bool(triton.knobs.runtime.interpret)

#: Where tiles are few, their columns are cut in parts, until there are this many programs: a few for each SM.
PROGRAMS, LEAST_COLUMNS = 512, 256


def launch(kernel: Any, name: str, axes: tuple[str, ...], copies: int, wide: torch.dtype, **arguments: Any) -> None:
    """Runs `copies` times the programs that cover `axes` of the problem, numbered with the first axis fastest.

    name: the kernel's rows in the tuning table. wide: the type it computes in. Every kernel takes rows, columns, dim
    and writes to out.
    """
    device = arguments["out"].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        problem = {axis: arguments[axis] for axis in AXES}
        sizes, num_warps, num_stages = tile_for(name, wide, None if INTERPRETED else _architecture(), problem)
        programs = copies * math.prod(triton.cdiv(arguments[axis], sizes[AXES[axis]]) for axis in axes)
        options = dict(num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)  # without it 3.9 warns
        kernel[(programs,)](**arguments, **sizes, **options)


def _architecture() -> int | None:
    """That of the current device as the tuning table names it: 80, 90, 100; None for AMD."""
    target = triton.runtime.driver.active.get_current_target()
    return target.arch // 10 * 10 if target.backend == "cuda" else None


def parts_of(programs: int, columns: int, most: int) -> tuple[int, int]:
    """How many columns a part has, and how many parts there are, at most `most`, beside so many programs."""
    parts = max(1, min(PROGRAMS // programs, most, columns // LEAST_COLUMNS))
    size = triton.cdiv(triton.cdiv(columns, parts), LEAST_COLUMNS) * LEAST_COLUMNS
    return size, triton.cdiv(columns, size)
