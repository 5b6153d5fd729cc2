"""Value ranges, 8-bit codes and error bounds of rows in plain torch (E10, E14).

It defines what csrc/cpu/quantize.cpp computes, and quantizes tensors that are not on the CPU. It reads nothing back
from the device. MATH.md, "The error of a row", derives the constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import ACCUMULATE, GROUP, PANEL
from .rounding import gamma, has_bound, max_score_size, parts

#: The error of a row without a bound. Such a row passes every threshold, so it is always rescored.
UNBOUNDED = 1 << 29
#: An error must be below this to count as a bound, so that sums with code differences fit in int32.
MAX_ROW_ERROR = UNBOUNDED / 4
#: Multiple of gamma * size in a row's error: the rounding of the score, of the base, and 0.1 for that of `size`.
ROW_ERROR_FACTOR = 2.1
#: Roundings per code column in the quantization itself, each of a number up to CODE_RANGE.
CODE_ROUNDINGS, CODE_RANGE = 8, 256


def extent(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum and maximum of each dimension of [R, D], without values that have no bound; [D], [D].

    In the accumulator dtype; 0 and 0 for a dimension without any such value.
    """
    acc = ACCUMULATE[rows.dtype]
    low = torch.full(rows.shape[1:], torch.inf, dtype=acc, device=rows.device)
    high = -low
    for _, part in parts(rows):
        valid = has_bound(part)
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
    for chunk, part in parts(rows):
        scaled = (part[:, dim_order] - offset) * inv_scale  # v in MATH.md
        clamped = scaled.where(scaled > 0, 0).minimum(max_code)  # NaN becomes 0 here; the error below is then NaN
        code = (clamped + 0.5).floor()
        codes[chunk] = code.byte()
        # E14: what clamping changes in a query is the same for all references. It goes into the base, not the error.
        code_error = ((clamped if are_queries else scaled) - code).abs().double().sum(1)
        size = (scaled - max_code / 2).abs().double().sum(1)
        error = _row_error(code_error, size, extra_error, rows.shape[1], num_columns, offset.dtype)
        is_small = size * step < max_score_size(offset.dtype)
        bounded = has_bound(part).all(1) & (error < MAX_ROW_ERROR) & is_small
        error_bounds[chunk] = torch.where(bounded, error.nan_to_num(0).floor() + 1, UNBOUNDED).int()
        if are_queries:
            bases[chunk] = ((scaled - clamped).abs().double() * sign).sum(1) * step
    tiled = codes.view(padded_rows // PANEL, PANEL, num_columns // GROUP, GROUP).transpose(1, 2).contiguous()
    return tiled, error_bounds, bases


def _row_error(
    code_error: Tensor, size: Tensor, extra_error: Tensor, dim: int, num_columns: int, dtype: torch.dtype
) -> Tensor:
    """The error of each row in steps, before it is rounded up: "The error of a row" in MATH.md.

    code_error: sum of |v - code|; size: sum of |v - max_code / 2|.
    """
    unit, rounding = torch.finfo(dtype).eps / 2, gamma(dim, dtype)
    return (
        code_error * (1 + 2 * rounding)
        + ROW_ERROR_FACTOR * rounding * size
        + CODE_ROUNDINGS * unit * CODE_RANGE * num_columns
        + extra_error
    )
