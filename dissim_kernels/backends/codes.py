"""Extent and codes of rows (csrc/dissim.h) in plain torch: the meaning of csrc/cpu/quantize.cpp, and what quantizes
tensors that are not on the CPU. Nothing is read back from the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import ACCUMULATE

#: Rows of references that lie together and columns of one sign that do (csrc/dissim.h).
PANEL, GROUP = 16, 8
UNBOUNDED = 1 << 29
#: Values that are looked at together.
CHUNK = 1 << 24


def extent(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each dimension of [R, D], of those a bound can be known for; wide [D]."""
    wide = ACCUMULATE[rows.dtype]
    low = torch.full(rows.shape[1:], torch.inf, dtype=wide, device=rows.device)
    high = -low
    for part in _parts(rows):
        known = _known(part)
        low = torch.minimum(low, part.where(known, torch.inf).amin(0))
        high = torch.maximum(high, part.where(known, -torch.inf).amax(0))
    some = low <= high
    return low.where(some, 0), high.where(some, 0)


def encode(rows: Tensor, grid: Sequence[Tensor], extra: Tensor, of_queries: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [panels, groups, 16, 8] and errors [16 panels] of [R, D], and bases [R], 0 for references (E10, E14).

    grid: columns, low, inverse, top, weight, step; extra: steps to add to each error.
    """
    columns, low, inverse, top, weight, step = grid
    unit = torch.finfo(low.dtype).eps / 2
    terms = (rows.shape[1] + 16) * unit
    gamma = terms / (1 - terms)
    sign = weight[columns].double().sign() * (inverse > 0)
    padded = -(-rows.shape[0] // PANEL) * PANEL
    codes = torch.zeros(padded, len(columns), dtype=torch.uint8, device=rows.device)
    errors = torch.zeros(padded, dtype=torch.int32, device=rows.device)
    bases = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    first = 0
    for part in _parts(rows):
        here = slice(first, first := first + len(part))
        t = (part[:, columns] - low) * inverse
        inside = t.where(t > 0, 0).minimum(top)  # NaN is 0 here, and makes the errors NaN below
        code = (inside + 0.5).floor()
        codes[here] = code.byte()
        # E14: what a query lies beyond the references' grid is the same for all of them, so it costs no error.
        error = ((inside if of_queries else t) - code).abs().double().sum(1)
        size = (t - top / 2).abs().double().sum(1)
        # E10, half of E9, the roundings of this function, which are fewer than 8 a column, and those of the base.
        steps = error * (1 + 2 * gamma) + 2.1 * gamma * size + 8 * unit * 256 * len(columns) + extra
        greatest = torch.finfo(low.dtype).max / 8
        bounded = _known(part).all(1) & (steps < UNBOUNDED / 4) & (size * step < greatest)
        errors[here] = torch.where(bounded, steps.nan_to_num(0).floor() + 1, UNBOUNDED).int()
        if of_queries:
            bases[here] = ((t - inside).abs().double() * sign).sum(1) * step
    return codes.view(-1, PANEL, len(columns) // GROUP, GROUP).transpose(1, 2).contiguous(), errors, bases


def _parts(rows: Tensor):
    """The rows, wide, some at a time."""
    wide = ACCUMULATE[rows.dtype]
    parts = rows.split(max(1, CHUNK // max(1, rows.shape[1]))) if len(rows) else ()
    return (part.to(wide) for part in parts)


def _known(values: Tensor) -> Tensor:
    """Beyond a quarter of the greatest number a difference of two values may overflow: no bound is known."""
    return (values * 4).isfinite()
