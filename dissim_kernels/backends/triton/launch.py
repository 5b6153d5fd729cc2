"""How kernels are launched: on the tensors' device and torch's current stream, with a tile from the tuning table."""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any

import torch
import triton

from .tuning import AXES, candidates, chosen

#: Triton decides it when a kernel is defined.
INTERPRETED = bool(triton.knobs.runtime.interpret)
#: Measure every candidate on the first call of each size; Triton keeps the result on disk.
AUTOTUNE = os.environ.get("DISSIM_AUTOTUNE") == "1" and not INTERPRETED

#: Where tiles are few, their columns are cut in parts, until there are this many programs: a few for each SM.
PROGRAMS, LEAST_COLUMNS = 512, 256

_tuners: dict[str, Any] = {}


def launch(kernel: Any, name: str, axes: tuple[str, ...], copies: int, wide: torch.dtype, **arguments: Any) -> None:
    """Runs `copies` times the programs that cover `axes` of the problem, numbered with the first axis fastest.

    name: the kernel's rows in the tuning table. wide: the type it computes in. Every kernel takes rows, columns, dim
    and writes to out.
    """
    device = arguments["out"].device

    def grid(tile: dict) -> tuple[int]:
        return (copies * math.prod(triton.cdiv(arguments[axis], tile[AXES[axis]]) for axis in axes),)

    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if AUTOTUNE:
            if name not in _tuners:
                configs = [triton.Config(*tile) for tile in candidates(name)]
                _tuners[name] = triton.autotune(configs, key=["rows", "columns", "dim"], cache_results=True)(kernel)
            _tuners[name][grid](**arguments)
        else:
            sizes, warps, stages = chosen(name, device, wide, {axis: arguments[axis] for axis in AXES})
            kernel[grid(sizes)](**arguments, **sizes, num_warps=warps, num_stages=stages)


def parts_of(programs: int, columns: int, most: int) -> tuple[int, int]:
    """How many columns a part has, and how many parts there are, at most `most`, beside so many programs."""
    parts = max(1, min(PROGRAMS // programs, most, columns // LEAST_COLUMNS))
    size = triton.cdiv(triton.cdiv(columns, parts), LEAST_COLUMNS) * LEAST_COLUMNS
    return size, triton.cdiv(columns, size)
