"""Quantized references and queries (E10): the choice of the grid, and the calls of the kernels that encode rows.

One step is used for all dimensions, in units of the score: dimension d is scaled by |weight_d| / step. Code
differences of all dimensions can then be added as integers. Each dimension has a window of 255 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import ACCUMULATE, GROUP, PANEL
from . import codes as plain_torch
from .rounding import ROUNDING_SLACK, underflow_error

#: Rows whose mean error decides the step.
SAMPLE_ROWS = 512
#: The largest code, so also the steps in a window.
MAX_CODE = 255
#: The step is divided by this while the mean error of the sample decreases,
STEP_RATIO = 1.4
#: at most so many times: down to 6e-10 of the first step.
MAX_STEPS = 64


def quantize_references(reference: Tensor, weight: Tensor) -> list[Tensor]:
    """The tensors of `QuantizedReferences` (ops/quantize.py) for reference [M, D] and weight [D]."""
    acc = ACCUMULATE[reference.dtype]
    weight = weight.to(acc, copy=True).contiguous()  # a copy, because an optimizer changes the original in place
    window_start, step = _choose_grid(reference, weight.double())
    dim_order, is_dim = _order_dims(weight)
    inv_scale = (weight[dim_order].double().abs() / step * is_dim).to(acc)
    offset = (window_start[dim_order] * is_dim).to(acc)
    high = _extent(reference)[1][dim_order]
    max_code = ((high - offset) * inv_scale * is_dim).round().nan_to_num(0).clamp(0, MAX_CODE)
    grid = (dim_order, offset, inv_scale, max_code, weight, step)
    codes, error_bounds, _ = _encode(reference, grid, underflow_error(weight) / step, are_queries=False)
    return [codes, error_bounds, *grid]


def quantize_queries(query: Tensor, bias: Tensor | None, grid: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Codes, error bounds and bases [N] (csrc/dissim.h) of queries on the grid of references.

    The base includes the bias, and the error bounds include the rounding of the bias.
    """
    *_, weight, step = grid
    extra_error = underflow_error(weight) / step
    if bias is None:
        return _encode(query, grid, extra_error, are_queries=True)
    bias_rounding = (query.shape[1] + ROUNDING_SLACK) * torch.finfo(weight.dtype).eps
    extra_error = extra_error + bias_rounding * bias.double().abs() / step
    codes, error_bounds, bases = _encode(query, grid, extra_error, are_queries=True)
    return codes, error_bounds, bases + bias.double()


def positive_groups(weight: Tensor) -> Tensor:
    """The number of groups of columns with positive weights, which are the first ones; int64 []."""
    return ((weight > 0).sum() + GROUP - 1) // GROUP


def _encode(
    rows: Tensor, grid: Sequence[Tensor], extra_error: Tensor, are_queries: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`codes.encode`, on the CPU by the kernel."""
    if rows.device.type != "cpu":
        return plain_torch.encode(rows, grid, extra_error, are_queries)
    dim_order, offset, inv_scale, max_code, weight, step = grid
    panels = -(-rows.shape[0] // PANEL)
    codes = dim_order.new_empty(panels, len(dim_order) // GROUP, PANEL, GROUP, dtype=torch.uint8)
    error_bounds = dim_order.new_empty(panels * PANEL, dtype=torch.int32)
    bases = dim_order.new_empty(rows.shape[0] if are_queries else 0, dtype=torch.float64)
    torch.ops.dissim_native.quantize(
        rows[None], dim_order, offset, inv_scale, max_code, positive_groups(weight).item(), step.item(),
        extra_error.item(), codes, error_bounds, bases if are_queries else None,
    )  # fmt: skip
    return codes, error_bounds, bases


def _extent(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`codes.extent`, on the CPU by the kernel."""
    if rows.device.type != "cpu":
        return plain_torch.extent(rows)
    low, high = (rows.new_empty(rows.shape[1], dtype=ACCUMULATE[rows.dtype]) for _ in range(2))
    torch.ops.dissim_native.extent(rows[None], low, high)
    return low, high


def _order_dims(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The dimension of each code column, and 1 for a dimension or 0 for padding.

    Positive weights come first, then negative ones, each padded to whole groups with dimension 0.
    """
    dim_order, is_dim = [], []
    for has_sign in (weight > 0, weight < 0):
        dims = has_sign.nonzero()[:, 0]
        padding = dims.new_zeros(-len(dims) % GROUP)
        dim_order += [dims, padding]
        is_dim += [torch.ones_like(dims), padding]
    return torch.cat(dim_order), torch.cat(is_dim)


def sample_rows(reference: Tensor) -> Tensor:
    """Numbers of at most SAMPLE_ROWS rows, evenly spaced from the first to the last.

    In integers, because float32 (torch.linspace) is not exact above 2**24.
    """
    rows = reference.shape[0]
    count = min(SAMPLE_ROWS, rows)
    return torch.arange(count, device=reference.device) * (rows - 1) // max(1, count - 1)


def _choose_grid(reference: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The start of each dimension's window [D], and the step.

    The first step covers the largest weighted range with 255 steps, so that no reference is clamped. A smaller step
    rounds less but clamps values outside its windows, which are centered on the median. It is tried while the mean
    error of a sample of rows decreases. This also keeps a few outliers from making the step too large.
    """
    low, high = (side.double() for side in _extent(reference))
    scale = weight.abs()
    step = ((high - low) * scale).amax() / MAX_CODE if weight.numel() else weight.new_zeros(())
    if not step > 0:  # all references are equal, or a weight is NaN
        return low, torch.where(step == 0, 1.0, step)
    sample = reference[sample_rows(reference)].double().nan_to_num(0, 0, 0)
    center = sample.median(0).values
    min_error, best = sample.new_tensor(math.inf), (low, step)
    for _ in range(MAX_STEPS):
        window_start = torch.maximum(low, center - MAX_CODE / 2 * step / scale)
        scaled = (sample - window_start) * scale / step
        rounding, clamping = (scaled - scaled.round()).abs(), (scaled - scaled.clamp(0, MAX_CODE)).abs()
        # Rounding counts twice, for the reference and the query. Clamping a query costs no error (E14).
        error = step * (2 * rounding + clamping).nansum()
        if not error < min_error:
            break
        min_error, best, step = error, (window_start, step), step / STEP_RATIO
    return best
