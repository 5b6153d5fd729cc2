"""What the codes (E10) and the clusters (E17) of references share: which rows have a bound, and parts of its value.

MATH.md, "The error of a row" and E17, derive the constants.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..contract import ACCUMULATE

#: Spare roundings in gamma, beyond the D of a sum.
ROUNDING_SLACK = 16
#: A value above the largest number divided by this has no bound, because a difference of two might overflow.
MAX_VALUE_DIVISOR = 4
#: A score above the largest number divided by this has no bound, because E9 assumes that nothing overflows.
MAX_SCORE_SIZE_DIVISOR = 8
#: Values that are processed together.
CHUNK = 1 << 24


def gamma(dim: int, dtype: torch.dtype) -> float:
    """gamma_{D + 16}: the relative error (E9) of a score in the accumulator dtype, with spare roundings."""
    roundings = (dim + ROUNDING_SLACK) * torch.finfo(dtype).eps / 2
    return roundings / (1 - roundings)


def underflow_error(weight: Tensor) -> Tensor:
    """What underflow can add to the error of a score, float64 []: e_0 of E17; in steps, the first part of E10's."""
    return (weight.double().abs().sum() + len(weight) + ROUNDING_SLACK) * torch.finfo(weight.dtype).smallest_normal


def max_score_size(dtype: torch.dtype) -> float:
    """The limit of the sizes (E10, E17) of rows whose scores cannot overflow."""
    return torch.finfo(dtype).max / MAX_SCORE_SIZE_DIVISOR


def has_bound(values: Tensor) -> Tensor:
    """False for NaN, Inf, and values so large that a difference of two might overflow."""
    return (values * MAX_VALUE_DIVISOR).isfinite()


def parts(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows of at most CHUNK values, and those rows in the accumulator dtype."""
    size = max(1, CHUNK // max(1, rows.shape[1]))
    for first in range(0, len(rows), size):
        chunk = slice(first, min(first + size, len(rows)))
        yield chunk, rows[chunk].to(ACCUMULATE[rows.dtype])
