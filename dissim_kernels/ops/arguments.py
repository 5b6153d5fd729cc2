"""Steps that the public functions share before they call an operator: autocast and the shape of the bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contract import ACCUMULATE

#: Whether autocast is on for any device: one call instead of several. A torch without it takes the longer way.
_any_autocast_enabled = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def autocast_to_float32(*arguments: Tensor | float | None) -> list:
    """torch.cdist's autocast policy: every floating tensor but float64 becomes float32."""
    if not _any_autocast_enabled():
        return list(arguments)
    return [
        x.float()
        if isinstance(x, Tensor)
        and torch.amp.is_autocast_available(x.device.type)
        and torch.is_autocast_enabled(x.device.type)
        and x.is_floating_point()
        and x.dtype != torch.float64
        else x
        for x in arguments
    ]


def head_bias(bias: Tensor | float | None, weight: Tensor) -> Tensor | None:
    """The bias as a tensor [C], one entry per head, or None."""
    if bias is None:
        return None
    heads = 1 if weight.dim() == 1 else weight.shape[0]
    return bias.expand(heads) if isinstance(bias, Tensor) else constant(bias, heads, weight)


def constant(value: float, size: int, like: Tensor) -> Tensor:
    """A number as a tensor [size] in the accumulator dtype; infinite if it is out of range, as in torch's sums."""
    dtype = ACCUMULATE[like.dtype]
    if abs(value) > torch.finfo(dtype).max:
        value = math.inf if value > 0 else -math.inf
    return like.new_full((size,), value, dtype=dtype)
