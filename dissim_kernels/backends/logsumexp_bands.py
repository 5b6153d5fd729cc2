"""The backward pass of the log-sum-exp (E15) by a backend's score and score_backward, in bands of references.

It scores all pairs again, whatever their bits. Its memory is a band of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..contract import LogSumExpBackwardArguments
from .reference import CHUNK, unpacked_bits


def backward(
    score: Callable, score_backward: Callable, given: LogSumExpBackwardArguments, needs: Sequence[bool]
) -> list[Tensor]:
    """The gradients of query, reference and weight that are needed. The functions are those of a backend module."""
    grad, value, active, query, reference, weight, bias, scale = given
    acc, columns = grad.dtype, reference.shape[0]
    rows, head = query.to(acc)[None], weight.to(acc)[None]
    grads = [torch.zeros(x.shape, dtype=acc, device=x.device) for x in (query, reference, weight)]
    band = max(8, CHUNK // max(1, query.shape[0]) // 8 * 8)
    for first in range(0, columns if query.shape[0] else 0, band):
        m = slice(first, min(first + band, columns))
        others = reference[m].to(acc)[None]
        logits = score(rows, others, head, bias)[0, 0].mul_(scale)
        softmax = logits.sub_(value[:, None]).exp_()
        bits = unpacked_bits(active[:, first // 8 : (m.stop + 7) // 8], m.stop - first)
        upstream = torch.where(bits, softmax.mul_((grad * scale)[:, None]), 0)
        parts = iter(score_backward(upstream[None, None], rows, others, head, needs))
        if needs[0]:
            grads[0] += next(parts)[0]
        if needs[1]:
            grads[1][m] = next(parts)[0]
        if needs[2]:
            grads[2] += next(parts)[0]
    dtypes = (query.dtype, reference.dtype, weight.dtype)
    return [g.to(dtype) for g, dtype, needed in zip(grads, dtypes, needs, strict=True) if needed]
