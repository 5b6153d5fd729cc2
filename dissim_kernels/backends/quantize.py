"""Rows as codes of 8 bits with error bounds (E10): the grid, and the kernels that fill it.

The grid has one step for all dimensions once they are scaled by |weight|, so that code differences add up in one unit
whatever the weights, and a window of 255 steps in each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import ACCUMULATE
from . import codes as plain_torch
from .codes import GROUP, PANEL

#: Rows whose mean error decides the step.
SAMPLE = 512
CODES = 255
#: Steps tried at most: down to 1e-9 of the widest dimension.
TRIES = 64


def quantize_references(reference: Tensor, weight: Tensor) -> list[Tensor]:
    """The tensors of `QuantizedReferences` (ops/quantized_topk.py) for reference [M, D] and weight [D]."""
    wide = ACCUMULATE[reference.dtype]
    weight = weight.to(wide, copy=True).contiguous()  # kept to be compared: an optimiser changes its own in place
    low, step = _grid(reference, weight.double())
    columns, real = _columns(weight)
    inverse = (weight[columns].double().abs() / step * real).to(wide)
    low = (low[columns] * real).to(wide)
    high = _extent(reference)[1][columns]
    top = ((high - low) * inverse * real).round().nan_to_num(0).clamp(0, CODES)
    grid = (columns, low, inverse, top, weight, step)
    codes, errors, _ = _encode(reference, grid, _underflow(weight, step), of_queries=False)
    return [codes, errors, *grid]


def quantize_queries(query: Tensor, bias: Tensor | None, grid: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Codes, errors and bases [N] (csrc/dissim.h) on the grid of references. The rounding of the bias is in the
    errors."""
    *_, weight, step = grid
    extra = _underflow(weight, step)
    if bias is None:
        return _encode(query, grid, extra, of_queries=True)
    rounding = (query.shape[1] + 16) * torch.finfo(weight.dtype).eps
    extra = extra + rounding * bias.double().abs() / step
    codes, errors, bases = _encode(query, grid, extra, of_queries=True)
    return codes, errors, bases + bias.double()


def positive_groups(weight: Tensor) -> Tensor:
    """How many groups of columns have weights above 0: the first ones; int64 []."""
    return ((weight > 0).sum() + GROUP - 1) // GROUP


def _encode(rows: Tensor, grid: Sequence[Tensor], extra: Tensor, of_queries: bool) -> tuple[Tensor, Tensor, Tensor]:
    if rows.device.type != "cpu":
        return plain_torch.encode(rows, grid, extra, of_queries)
    columns, low, inverse, top, weight, step = grid
    panels = -(-rows.shape[0] // PANEL)
    codes = columns.new_empty(panels, len(columns) // GROUP, PANEL, GROUP, dtype=torch.uint8)
    errors = columns.new_empty(panels * PANEL, dtype=torch.int32)
    bases = columns.new_empty(rows.shape[0] if of_queries else 0, dtype=torch.float64)
    torch.ops.dissim_native.quantize(
        rows[None], columns, low, inverse, top, positive_groups(weight).item(), step.item(), extra.item(), codes,
        errors, bases if of_queries else None,
    )  # fmt: skip
    return codes, errors, bases


def _extent(rows: Tensor) -> tuple[Tensor, Tensor]:
    if rows.device.type != "cpu":
        return plain_torch.extent(rows)
    low, high = (rows.new_empty(rows.shape[1], dtype=ACCUMULATE[rows.dtype]) for _ in range(2))
    torch.ops.dissim_native.extent(rows[None], low, high)
    return low, high


def _columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The dimension of each code column, positive weights first, each sign filled up to whole groups, and which
    columns are none of those that fill up."""
    columns, real = [], []
    for chosen in (weight > 0, weight < 0):
        dims = chosen.nonzero()[:, 0]
        spare = dims.new_zeros(-len(dims) % GROUP)
        columns += [dims, spare]
        real += [torch.ones_like(dims), spare]
    return torch.cat(columns), torch.cat(real)


def _underflow(weight: Tensor, step: Tensor) -> Tensor:
    """What numbers below the smallest normal one may cost a score, in steps."""
    return (weight.double().abs().sum() + len(weight) + 16) * torch.finfo(weight.dtype).smallest_normal / step


def sample_rows(reference: Tensor) -> Tensor:
    """Numbers of at most SAMPLE rows, evenly spaced from the first to the last; float32 cannot count beyond 2**24."""
    rows = reference.shape[0]
    count = min(SAMPLE, rows)
    return torch.arange(count, device=reference.device) * (rows - 1) // max(1, count - 1)


def _grid(reference: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Where each dimension's window begins [D], and the step.

    The widest dimension needs (range / 255) a step if none of its values may fall out of the window. A smaller step
    rounds less but cuts off the rarest values: smaller ones are taken while the mean error of a sample of rows falls,
    which also keeps a single wild value from spoiling the grid.
    """
    low, high = (side.double() for side in _extent(reference))
    scale = weight.abs()
    step = ((high - low) * scale).amax() / CODES if weight.numel() else weight.new_zeros(())
    if not step > 0:  # every reference alike, or weights that are no numbers
        return low, torch.where(step == 0, 1.0, step)
    sample = reference[sample_rows(reference)].double().nan_to_num(0, 0, 0)
    centre = sample.median(0).values
    least, best = sample.new_tensor(math.inf), (low, step)
    for _ in range(TRIES):
        start = torch.maximum(low, centre - CODES / 2 * step / scale)
        t = (sample - start) * scale / step
        rounded, cut = (t - t.round()).abs(), (t - t.clamp(0, CODES)).abs()
        error = step * (2 * rounded + cut).nansum()  # a query's values are rounded too, but never cut off (E14)
        if not error < least:
            break
        least, best, step = error, (start, step), step / 1.4
    return best
