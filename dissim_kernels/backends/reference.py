"""The backend `reference`: pure PyTorch on any device, in chunks, so that no N x M x D tensor exists.

It defines what every other backend must compute, and tests compare the others with it. The functions of the score
take the shapes of ops/score_operators.py: query [B, N, D], reference [B, M, D], weight [C, D], bias [C] or None. The
others take the shapes in contract.py, without a batch and heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..contract import (
    ACCUMULATE,
    Filter,
    HingeArguments,
    HingeBackwardArguments,
    LogSumExpArguments,
    LogSumExpBackwardArguments,
    Problem,
    RankArguments,
    TopKArguments,
)
from .clusters import Scorer, make_clusters
from .quantize import quantize_references  # noqa: F401

#: Why it does not run a search.
NO_SEARCH = {"quantized_topk": "it has no scan over codes", "clustered_topk": "it has no search of clusters"}
#: Maximum number of elements of a temporary (16 MiB in float32), unless the D of one pair is larger.
CHUNK = 1 << 22


def unsupported_reason(problem: Problem) -> str | None:
    """It runs every problem on every device, but its only search scores every reference."""
    return NO_SEARCH.get(problem.operation)


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
        excluded = excluded_pairs(arguments.filter, n, scores)
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
    for n in row_blocks(query, reference):
        scores = _row_scores(query[n], reference, weight, bias)
        same = query_labels[n, None] == reference_labels
        kept = ~excluded_pairs(Filter(exclude_index, None, None, False), n, scores)
        if num_hard_negatives is not None:
            excluded = excluded_pairs(Filter(exclude_index, query_labels, reference_labels, False), n, scores)
            hard = select(scores, excluded, min(num_hard_negatives, columns), True)[1]
            # One more column takes the places without a candidate: -1 % (columns + 1) is `columns`.
            is_hard = torch.zeros(same.shape[0], columns + 1, dtype=torch.bool, device=same.device)
            kept &= same | is_hard.scatter_(1, hard % (columns + 1), True)[:, :columns]
        violation = torch.where(same, margin - scores, margin + scores).clamp(min=0)
        for row_sums, pairs in zip(sums, (same & kept, ~same & kept), strict=True):
            row_sums[n] = violation.masked_fill(~pairs, 0).sum(1)
        active[n] = packed_bits((violation > 0) & kept)
    return sums[0], sums[1], active


def hinge_backward(arguments: HingeBackwardArguments, needs: Sequence[bool]) -> list[Tensor]:
    """The needed ones of the gradients [N, D], [M, D], [D], [1]: E12 for the scores of a block, then E2."""
    grad_positive, grad_negative, active, query, reference, weight, query_labels, reference_labels = arguments
    tensors = (query, reference, weight, grad_positive.new_empty(1))
    grads = [torch.zeros(t.shape, dtype=grad_positive.dtype, device=t.device) for t in tensors]
    for n in row_blocks(query, reference):
        bits = unpacked_bits(active[n], reference.shape[0])
        same = query_labels[n, None] == reference_labels
        g = torch.where(same, -grad_positive[n, None], grad_negative[n, None]) * bits
        _add_gradients(grads, g, n, query, reference, weight)
        grads[3] += g.sum()
    return [g.to(t.dtype) for g, t, needed in zip(grads, tensors, needs, strict=True) if needed]


def _add_gradients(
    grads: list[Tensor], g: Tensor, n: slice, query: Tensor, reference: Tensor, weight: Tensor
) -> None:
    """Adds what the score gradients g of query rows n bring to those of query, reference and weight."""
    parts = score_backward(g[None, None], query[None, n], reference[None], weight[None], (True, True, True))
    grads[0][n] = parts[0][0]
    grads[1] += parts[1][0]
    grads[2] += parts[2][0]


def packed_bits(flags: Tensor) -> Tensor:
    """bool [n, M] -> uint8 [n, ceil(M / 8)], lowest bit first."""
    count = (flags.shape[1] + 7) // 8
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=flags.device)
    bits = pad(flags, (0, count * 8 - flags.shape[1])).unflatten(1, (count, 8))
    return (bits * powers).sum(2, dtype=torch.uint8)


def unpacked_bits(packed: Tensor, columns: int) -> Tensor:
    """The inverse of `packed_bits`."""
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] & powers) != 0).flatten(1)[:, :columns]


def logsumexp(given: LogSumExpArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp and mean score of each row [N], [N], and the active bits [N, ceil(M / 8)] (E15)."""
    query, reference, weight, bias, scale = given[:5]
    rows, columns = query.shape[0], reference.shape[0]
    acc = ACCUMULATE[query.dtype]
    value, mean_score = (torch.zeros(rows, dtype=acc, device=query.device) for _ in range(2))
    active = torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8, device=query.device)
    min_share = torch.finfo(acc).eps / 2 / max(1, columns)
    for n in row_blocks(query, reference):
        scores = _row_scores(query[n], reference, weight, bias)
        kept = ~excluded_pairs(given.filter, n, scores)
        logits = torch.where(kept, scale * scores, -torch.inf)
        value[n] = logits.logsumexp(1)
        shares = torch.where(logits.isneginf(), 0, (logits - value[n, None]).exp())
        mean_score[n] = torch.where(shares == 0, 0, shares * scores).sum(1)
        active[n] = packed_bits(kept & ~(shares <= min_share))  # a NaN is active
    return value, mean_score, active


def logsumexp_backward(given: LogSumExpBackwardArguments, needs: Sequence[bool]) -> list[Tensor]:
    """The softmax of the active pairs turned into a score gradient, block by block (E15)."""
    grad, value, active, query, reference, weight, bias, scale = given
    tensors = (query, reference, weight)
    grads = [torch.zeros(t.shape, dtype=grad.dtype, device=t.device) for t in tensors]
    for n in row_blocks(query, reference):
        scores = _row_scores(query[n], reference, weight, bias)
        share = (scale * scores - value[n, None]).exp()
        g = torch.where(unpacked_bits(active[n], reference.shape[0]), grad[n, None] * scale * share, 0)
        _add_gradients(grads, g, n, query, reference, weight)
    return [g.to(t.dtype) for g, t, needed in zip(grads, tensors, needs, strict=True) if needed]


def listed_scores(
    query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, indices: Tensor
) -> Tensor:
    """Scores of each query's listed references [P], out of the blocks that `rank` compares."""
    out = query.new_empty(indices.shape, dtype=ACCUMULATE[query.dtype])
    rows = torch.arange(query.shape[0], device=query.device).repeat_interleave(offsets.diff())
    for n in row_blocks(query, reference):
        scores = _row_scores(query[n], reference, weight, bias)
        listed = slice(int(offsets[n.start]), int(offsets[n.stop]))
        out[listed] = scores[rows[listed] - n.start, indices[listed]]
    return out


def rank(given: RankArguments) -> tuple[Tensor, Tensor]:
    """For each listed pair the references before it: of a larger score, or of the same one and a lower index."""
    query, reference, weight, bias, offsets, indices, listed_scores = given
    counts = torch.zeros_like(indices)
    nan_rows = torch.zeros(query.shape[0], dtype=torch.bool, device=query.device)
    columns = torch.arange(reference.shape[0], device=query.device)
    first = 0
    for n in row_blocks(query, reference):
        scores = _row_scores(query[n], reference, weight, bias)
        nan_rows[n] = scores.isnan().any(1)
        for row, last in enumerate(offsets[n.start + 1 : n.stop + 1].tolist()):
            for pairs in _slices(last - first, max(1, CHUNK // max(1, reference.shape[0]))):
                listed = slice(first + pairs.start, first + pairs.stop)
                score, index = listed_scores[listed, None], indices[listed, None]
                before = (scores[row] > score) | ((scores[row] == score) & (columns < index))
                counts[listed] = (before & (columns != index)).sum(1)
            first = last
    return counts, nan_rows


def row_blocks(query: Tensor, reference: Tensor) -> list[slice]:
    """Slices of query rows whose scores against all references fit in CHUNK elements."""
    return _slices(query.shape[0], max(1, CHUNK // max(1, reference.shape[0])))


def _row_scores(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Scores [n, M] in the accumulator dtype."""
    acc = ACCUMULATE[query.dtype]
    return score(query[None].to(acc), reference[None].to(acc), weight[None].to(acc), bias)[0, 0]


def excluded_pairs(filter: Filter, rows: slice, scores: Tensor) -> Tensor:
    """The pairs of some query rows that do not count, bool like their scores [n, M]."""
    excluded = torch.zeros_like(scores, dtype=torch.bool)
    if filter.exclude_index is not None:
        excluded |= filter.exclude_index[rows, None] == torch.arange(scores.shape[1], device=scores.device)
    if filter.query_labels is not None:
        excluded |= (filter.query_labels[rows, None] == filter.reference_labels) != filter.among_same
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


cluster_references = partial(make_clusters, Scorer(score, topk))
