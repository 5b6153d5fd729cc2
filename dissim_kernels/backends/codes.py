"""Value ranges, 8-bit codes and error bounds of rows in plain torch (E10, E14).

It defines what csrc/cpu/quantize.cpp computes, and quantizes tensors that are not on the CPU. It reads nothing back
from the device. MATH.md, "The error of a row", derives the constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..contract import ACCUMULATE

#: Layout of the codes (csrc/dissim.h): rows per panel and code columns per group.
PANEL, GROUP = 16, 8
#: The error of a row without a bound. Such a row passes every threshold, so it is always rescored.
UNBOUNDED = 1 << 29
#: An error must be below this to count as a bound, so that sums with code differences fit in int32.
MAX_ROW_ERROR = UNBOUNDED / 4
#: Spare roundings in gamma, beyond the D of a sum.
ROUNDING_SLACK = 16
#: Multiple of gamma * size in a row's error: the rounding of the score, of the base, and 0.1 for that of `size`.
ROW_ERROR_FACTOR = 2.1
#: Roundings per code column in the quantization itself, each of a number up to CODE_RANGE.
CODE_ROUNDINGS, CODE_RANGE = 8, 256
#: A value above the largest number divided by this has no bound, because a difference of two might overflow.
MAX_VALUE_DIVISOR = 4
#: A score above the largest number divided by this has no bound, because E9 assumes that nothing overflows.
MAX_SCORE_SIZE_DIVISOR = 8
#: Values that are processed together.
CHUNK = 1 << 24


def extent(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum and maximum of each dimension of [R, D], without values that have no bound; [D], [D].

    In the accumulator dtype; 0 and 0 for a dimension without any such value.
    """
    acc = ACCUMULATE[rows.dtype]
    low = torch.full(rows.shape[1:], torch.inf, dtype=acc, device=rows.device)
    high = -low
    for part in _parts(rows):
        valid = _has_bound(part)
        low = torch.minimum(low, part.where(valid, torch.inf).amin(0))
        high = torch.maximum(high, part.where(valid, -torch.inf).amax(0))
    any_valid = low <= high
    return low.where(any_valid, 0), high.where(any_valid, 0)


def encode(
    rows: Tensor, grid: Sequence[Tensor], extra_error: Tensor, are_queries: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [panels, groups, 16, 8], error bounds [16 panels] and bases of queries [R] (0 for references) of [R, D].

    grid: dim_order, offset, inv_scale, max_code, weight, step. extra_error: e_0 in MATH.md, in steps, added to each
    error.
    """
    dim_order, offset, inv_scale, max_code, weight, step = grid
    num_columns = len(dim_order)
    sign = weight[dim_order].double().sign() * (inv_scale > 0)  # 0 for padding
    padded_rows = -(-rows.shape[0] // PANEL) * PANEL
    codes = torch.zeros(padded_rows, num_columns, dtype=torch.uint8, device=rows.device)
    error_bounds = torch.zeros(padded_rows, dtype=torch.int32, device=rows.device)
    bases = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    first = 0
    for part in _parts(rows):
        chunk = slice(first, first := first + len(part))
        scaled = (part[:, dim_order] - offset) * inv_scale  # v in MATH.md
        clamped = scaled.where(scaled > 0, 0).minimum(max_code)  # NaN becomes 0 here; the error below is then NaN
        code = (clamped + 0.5).floor()
        codes[chunk] = code.byte()
        # E14: what clamping changes in a query is the same for all references. It goes into the base, not the error.
        code_error = ((clamped if are_queries else scaled) - code).abs().double().sum(1)
        size = (scaled - max_code / 2).abs().double().sum(1)
        error = _row_error(code_error, size, extra_error, rows.shape[1], num_columns, offset.dtype)
        max_score_size = torch.finfo(offset.dtype).max / MAX_SCORE_SIZE_DIVISOR
        bounded = _has_bound(part).all(1) & (error < MAX_ROW_ERROR) & (size * step < max_score_size)
        error_bounds[chunk] = torch.where(bounded, error.nan_to_num(0).floor() + 1, UNBOUNDED).int()
        if are_queries:
            bases[chunk] = ((scaled - clamped).abs().double() * sign).sum(1) * step
    tiled = codes.view(-1, PANEL, num_columns // GROUP, GROUP).transpose(1, 2).contiguous()
    return tiled, error_bounds, bases


def _row_error(
    code_error: Tensor, size: Tensor, extra_error: Tensor, dim: int, num_columns: int, dtype: torch.dtype
) -> Tensor:
    """The error of each row in steps, before it is rounded up: "The error of a row" in MATH.md.

    code_error: sum of |v - code|; size: sum of |v - max_code / 2|.
    """
    unit = torch.finfo(dtype).eps / 2
    roundings = (dim + ROUNDING_SLACK) * unit
    gamma = roundings / (1 - roundings)
    return (
        code_error * (1 + 2 * gamma)
        + ROW_ERROR_FACTOR * gamma * size
        + CODE_ROUNDINGS * unit * CODE_RANGE * num_columns
        + extra_error
    )


def _parts(rows: Tensor) -> Iterator[Tensor]:
    """The rows in the accumulator dtype, at most CHUNK values at a time."""
    acc = ACCUMULATE[rows.dtype]
    parts = rows.split(max(1, CHUNK // max(1, rows.shape[1]))) if len(rows) else ()
    return (part.to(acc) for part in parts)


def _has_bound(values: Tensor) -> Tensor:
    """False for NaN, Inf, and values so large that a difference of two might overflow."""
    return (values * MAX_VALUE_DIVISOR).isfinite()
