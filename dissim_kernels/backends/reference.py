"""The backend `reference`: pure PyTorch on any device, in chunks, so that no N x M x D tensor exists.

It defines what every other backend must compute, and tests compare the others with it. All functions take the
canonical shapes of ops/score_operators.py: query [B, N, D], reference [B, M, D], weight [C, D], bias [C] or None.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..contract import ACCUMULATE, HingeArguments, HingeBackwardArguments, Problem, TopKArguments
from .quantize import quantize_references  # noqa: F401

#: Maximum number of elements of a temporary (16 MiB in float32), unless the D of one pair is larger.
CHUNK = 1 << 22


def unsupported_reason(problem: Problem) -> str | None:
    """It runs every problem on every device, but it has no quantized scan: it scores every reference."""
    return "it has no scan over codes" if problem.operation == "quantized_topk" else None


def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """E1. [B, N, D], [B, M, D], [C, D], [C] -> [B, C, N, M] in the embeddings' dtype."""
    out = query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])
    for b, n, m in _blocks(query, reference):
        out[b, :, n, m] = score_block(query[b, n], reference[b, m], weight, bias)
    return out


def score_block(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """E1 as defined, on one block: [b, n, D], [b, m, D], [C, D], [C] -> [b, C, n, m] in the accumulator dtype."""
    acc = ACCUMULATE[query.dtype]
    with torch.autocast(query.device.type, enabled=False):
        difference = query.to(acc).unsqueeze(2) - reference.to(acc).unsqueeze(1)
        scores = (difference.abs() @ weight.to(acc).T).movedim(-1, 1)
    return scores if bias is None else scores + bias.to(acc)[:, None, None]


def score_backward(
    grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    """E2 with each sum over pairs. grad [B, C, N, M] -> the needed ones of [B, N, D], [B, M, D], [C, D]."""
    acc = ACCUMULATE[query.dtype]
    grads = [torch.zeros(t.shape, dtype=acc, device=t.device) for t in (query, reference, weight)]
    with torch.autocast(query.device.type, enabled=False):
        for b, n, m in _blocks(query, reference):
            difference = query[b, n].to(acc).unsqueeze(2) - reference[b, m].to(acc).unsqueeze(1)
            sign = difference.sign()  # sign(0) = 0 (E3)
            for head, w in enumerate(weight.to(acc)):
                g = grad[b, head, n, m].to(acc)
                grads[0][b, n] += w * torch.einsum("bnm,bnmd->bnd", g, sign)
                grads[1][b, m] -= w * torch.einsum("bnm,bnmd->bmd", g, sign)
                # Summed in two steps, which rounds less than one sum over all pairs.
                row_sums = torch.einsum("bnm,bnmd->bnd", g, difference.abs())
                grads[2][head] += row_sums.sum((0, 1))
    dtypes = (query.dtype, reference.dtype, weight.dtype)
    return [g.to(dtype) for g, dtype, needed in zip(grads, dtypes, needs, strict=True) if needed]


def score_jvp(primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """Directional derivative of `score` (E13), [B, C, N, M] in the score's dtype.

    primals: query, reference, weight. tangents: one for each, and optionally one of the bias.
    """
    query, reference, weight = primals[:3]
    acc = ACCUMULATE[query.dtype]
    along_bias = tangents[3].to(acc) if len(tangents) == 4 else 0
    out = query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])
    with torch.autocast(query.device.type, enabled=False):
        for b, n, m in _blocks(query, reference):
            difference, change = (
                (q[b, n].to(acc).unsqueeze(2) - r[b, m].to(acc).unsqueeze(1))
                for q, r in zip((query, tangents[0]), (reference, tangents[1]), strict=True)
            )
            along_rows = (difference.sign() * change) @ weight.to(acc).T
            along_weight = difference.abs() @ tangents[2].to(acc).T
            out[b, :, n, m] = (along_rows + along_weight + along_bias).movedim(-1, 1)
    return out


def topk(arguments: TopKArguments) -> tuple[Tensor, Tensor]:
    """Scores in the accumulator dtype and indices [N, k]: best first, ties by lower index, NaN last.

    Places without a candidate have score NaN and index -1.
    """
    query, reference, weight, bias, k, largest = arguments[:6]
    acc, columns = ACCUMULATE[query.dtype], reference.shape[0]
    out = torch.full((query.shape[0], k), torch.nan, dtype=acc, device=query.device)
    indices = torch.full(out.shape, -1, device=query.device)
    width = min(k, columns)
    for n in row_blocks(query, reference):
        scores = _row_scores(query[n], reference, weight, bias)
        excluded = excluded_pairs(columns, *arguments.filters, n, scores)
        out[n, :width], indices[n, :width] = select(scores, excluded, k, largest)
    return out, indices


def select(scores: Tensor, excluded: Tensor, k: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The best min(k, M) of each row of scores [n, M] and their columns; NaN and -1 for excluded pairs."""
    # A stable sort by class (numbers, then NaN, then excluded pairs), followed by a stable sort by value.
    order = (excluded * 2 + (scores.isnan() & ~excluded)).sort(dim=1, stable=True).indices
    keys = scores.masked_fill(scores.isnan() | excluded, -torch.inf if largest else torch.inf)
    order = order.gather(1, keys.gather(1, order).sort(dim=1, stable=True, descending=largest).indices)
    order = order[:, :k]
    none_left = excluded.gather(1, order)
    return scores.gather(1, order).masked_fill(none_left, torch.nan), order.masked_fill(none_left, -1)


def hinge(arguments: HingeArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Hinge sums (E12) over each row's positives [N] and negatives [N], and the active bits [N, ceil(M / 8)]."""
    query, reference, weight, bias, query_labels, reference_labels, exclude_index = arguments[:7]
    margin, num_hard_negatives = arguments[7:]
    columns, row_bytes = reference.shape[0], (reference.shape[0] + 7) // 8
    sums = [torch.zeros(query.shape[0], dtype=ACCUMULATE[query.dtype], device=query.device) for _ in range(2)]
    active = torch.zeros(query.shape[0], row_bytes, dtype=torch.uint8, device=query.device)
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=query.device)
    for n in row_blocks(query, reference):
        scores = _row_scores(query[n], reference, weight, bias)
        same = query_labels[n, None] == reference_labels
        kept = ~excluded_pairs(columns, exclude_index, None, None, n, scores)
        if num_hard_negatives is not None:
            filters = (None if exclude_index is None else exclude_index[n], query_labels[n], reference_labels)
            k = min(num_hard_negatives, columns)
            hard = topk(TopKArguments(query[n], reference, weight, bias, k, True, *filters))[1]
            # One more column takes the places without a candidate: -1 % (columns + 1) is `columns`.
            is_hard = torch.zeros(same.shape[0], columns + 1, dtype=torch.bool, device=same.device)
            kept &= same | is_hard.scatter_(1, hard % (columns + 1), True)[:, :columns]
        violation = torch.where(same, margin - scores, margin + scores).clamp(min=0)
        for row_sums, pairs in zip(sums, (same & kept, ~same & kept), strict=True):
            row_sums[n] = violation.masked_fill(~pairs, 0).sum(1)
        inside = pad((violation > 0) & kept, (0, row_bytes * 8 - columns)).unflatten(1, (row_bytes, 8))
        active[n] = (inside * powers).sum(2, dtype=torch.uint8)
    return sums[0], sums[1], active


def hinge_backward(arguments: HingeBackwardArguments, needs: Sequence[bool]) -> list[Tensor]:
    """The needed ones of the gradients [N, D], [M, D], [D], [1]: E12 for the scores of a block, then E2."""
    grad_positive, grad_negative, active, query, reference, weight, query_labels, reference_labels = arguments
    tensors = (query, reference, weight, grad_positive.new_empty(1))
    grads = [torch.zeros(t.shape, dtype=grad_positive.dtype, device=t.device) for t in tensors]
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=query.device)
    for n in row_blocks(query, reference):
        bits = ((active[n, :, None] & powers) != 0).flatten(1)[:, : reference.shape[0]]
        same = query_labels[n, None] == reference_labels
        g = torch.where(same, -grad_positive[n, None], grad_negative[n, None]) * bits
        pair = (query[None, n], reference[None], weight[None])
        parts = score_backward(g[None, None], *pair, (True, True, True))
        grads[0][n] = parts[0][0]
        grads[1] += parts[1][0]
        grads[2] += parts[2][0]
        grads[3] += g.sum()
    return [g.to(t.dtype) for g, t, needed in zip(grads, tensors, needs, strict=True) if needed]


def row_blocks(query: Tensor, reference: Tensor) -> list[slice]:
    """Slices of query rows whose scores against all references fit in CHUNK elements."""
    return _slices(query.shape[0], max(1, CHUNK // max(1, reference.shape[0])))


def _row_scores(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Scores [n, M] in the accumulator dtype."""
    acc = ACCUMULATE[query.dtype]
    return score(query[None].to(acc), reference[None].to(acc), weight[None].to(acc), bias)[0, 0]


def excluded_pairs(columns, exclude_index, query_labels, reference_labels, rows: slice, like: Tensor) -> Tensor:
    """Pairs that a search must not return: each query's excluded row and, with labels, rows with its own label."""
    excluded = torch.zeros_like(like, dtype=torch.bool)
    if exclude_index is not None:
        excluded |= exclude_index[rows, None] == torch.arange(columns, device=like.device)
    if query_labels is not None:
        excluded |= query_labels[rows, None] == reference_labels
    return excluded


def _blocks(query: Tensor, reference: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Slices (batch, rows, columns) that cover all pairs, with at most CHUNK differences each."""
    (batch, rows, dimension), columns = query.shape, reference.shape[1]
    width = max(1, min(columns, CHUNK // max(1, dimension)))
    height = max(1, min(rows, CHUNK // (width * max(1, dimension))))
    depth = max(1, CHUNK // (height * width * max(1, dimension)))
    return itertools.product(_slices(batch, depth), _slices(rows, height), _slices(columns, width))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
