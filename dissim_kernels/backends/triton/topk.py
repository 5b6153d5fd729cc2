"""The k best references of each query, selected in registers from each tile of scores.

The references are divided into splits. A program selects the k best of its rows in one split, and torch merges the
splits:

    best[BN, K] = empty                         K: the next power of 2 of k
    for tile in columns of the split:
        ranks[BN, BM] = rank(scores of the tile), or EXCLUDED
        while the best rank left in a row is above the row's worst selected one:
            replace the worst selected one by it, and mark it EXCLUDED in the tile

If k is too large for registers, torch sorts blocks of scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import Filter, TopKArguments
from .. import reference as reference_backend
from .candidates import candidates, filter_operands
from .launch import column_splits, launch
from .score import launch_score
from .tile import MAX_TILE, MIN_TILE, operands, score_tile

#: The largest k for the selection in registers.
MAX_K_IN_REGISTERS = 32


@triton.jit
def rank(scores, LARGEST: tl.constexpr):
    """Integers in the order of the scores, the largest for the best score.

    These are the bits of the score, with the bits below the sign inverted for negative scores. -0 and +0 have the
    same rank. NaN ranks below every number; EXCLUDED, the smallest integer, ranks below NaN.
    """
    integer: tl.constexpr = tl.int64 if scores.dtype == tl.float64 else tl.int32
    all_ones: tl.constexpr = 0x7FFFFFFFFFFFFFFF if scores.dtype == tl.float64 else 0x7FFFFFFF
    better = scores if LARGEST else -scores
    bits = tl.where(scores == 0, 0.0, better).to(integer, bitcast=True)
    return tl.where(scores != scores, -all_ones, tl.where(bits < 0, bits ^ all_ones, bits))


@triton.jit
def _unrank(ranks, acc: tl.constexpr, LARGEST: tl.constexpr):
    """The score with this rank; NaN also for EXCLUDED."""
    all_ones: tl.constexpr = 0x7FFFFFFFFFFFFFFF if acc == tl.float64 else 0x7FFFFFFF
    scores = tl.where(ranks < 0, ranks ^ all_ones, ranks).to(acc, bitcast=True)
    return tl.where(ranks <= -all_ones, float("nan"), scores if LARGEST else -scores)


@triton.jit
def topk_kernel(
    query, reference, weight, bias, exclude_index, query_labels, reference_labels, out, indices, rows, columns, dim,
    k, splits, split_columns,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
    K: tl.constexpr, LARGEST: tl.constexpr, AMONG_SAME: tl.constexpr,
):  # fmt: skip
    """The k best of each row in each split of the columns, in no order: out and indices [N, splits, k]."""
    program = tl.program_id(0).to(tl.int64)
    n_blocks = tl.cdiv(rows, BN)
    n, split = program % n_blocks * BN, program // n_blocks
    row_index, slots = n + tl.arange(0, BN), tl.arange(0, K)
    in_rows = row_index < rows
    first = split * split_columns
    acc: tl.constexpr = weight.dtype.element_ty
    integer: tl.constexpr = tl.int64 if acc == tl.float64 else tl.int32
    EXCLUDED: tl.constexpr = -0x8000000000000000 if acc == tl.float64 else -0x80000000
    # Slots from k on hold the largest rank, so they are never replaced. Empty slots differ in their negative index.
    best = tl.zeros((BN, K), integer) + tl.where(slots < k, EXCLUDED, -(EXCLUDED + 1))[None, :].to(integer)
    best_at = tl.zeros((BN, K), tl.int32) - 1 - slots[None, :]
    worst = tl.min(best, 1)
    for m in range(first, tl.minimum(first + split_columns, columns), BM):
        scores = score_tile(
            query, reference, weight, bias, n, m, rows, columns, dim,
            query_row, query_dim, reference_row, reference_dim, BN, BM, UNROLL, PACKED,
        )  # fmt: skip
        column_index = m + tl.arange(0, BM)
        is_candidate = candidates(
            row_index, column_index, rows, columns, exclude_index, query_labels, reference_labels, AMONG_SAME
        )
        ranks = tl.where(is_candidate, rank(scores, LARGEST), EXCLUDED)
        at = (m - first).to(tl.int32) + tl.arange(0, BM)
        top = tl.max(ranks, 1)
        # Ties go to the lower index: earlier tiles have lower indices, so a column enters only if it is strictly
        # better, and of equal columns the lowest enters first.
        while tl.max((top > worst).to(tl.int32), 0) > 0:
            entering = tl.min(tl.where(ranks == top[:, None], at[None, :], 0x7FFFFFFF), 1)
            leaving = tl.max(tl.where(best == worst[:, None], best_at, -0x7FFFFFFF), 1)
            place = (best == worst[:, None]) & (best_at == leaving[:, None]) & (top > worst)[:, None]
            best = tl.where(place, top[:, None], best)
            best_at = tl.where(place, entering[:, None], best_at)
            ranks = tl.where(at[None, :] == entering[:, None], EXCLUDED, ranks)
            top, worst = tl.max(ranks, 1), tl.min(best, 1)
    to = (row_index[:, None] * splits + split) * k + slots[None, :]
    inside = in_rows[:, None] & (slots < k)[None, :]
    tl.store(out + to, _unrank(best, acc, LARGEST), mask=inside)
    tl.store(indices + to, tl.where(best == EXCLUDED, -1, best_at + first), mask=inside)


def topk(arguments: TopKArguments) -> tuple[Tensor, Tensor]:
    """Scores in the accumulator dtype and indices [N, k]: best first, ties by lower index, NaN last.

    Places without a candidate have index -1. Memory in addition to the result: packed copies and k candidates per
    split, or a block of scores for a large k.
    """
    query, reference, weight, bias, k, largest = arguments[:6]
    return topk_of(operands(query[None], reference[None], weight[None], bias), k, largest, arguments.filter)


def topk_of(arguments: dict, k: int, largest: bool, filter: Filter) -> tuple[Tensor, Tensor]:
    """`topk` for the arguments that `operands` returned."""
    rows, columns = arguments["rows"], arguments["columns"]
    acc, device = arguments["weight"].dtype, arguments["query"].device
    if not (rows and columns and k) or k > MAX_K_IN_REGISTERS:
        return _topk_of_blocks(arguments, k, largest, filter)
    split_columns, splits = column_splits(triton.cdiv(rows, MAX_TILE), columns, max_splits=columns)
    scores = torch.empty(rows, splits * k, dtype=acc, device=device)
    indices = torch.empty(rows, splits * k, dtype=torch.int64, device=device)
    launch(
        topk_kernel, "topk", ("rows",), splits, acc, **arguments, **filter_operands(filter), out=scores,
        indices=indices, k=k, splits=splits, split_columns=split_columns, K=triton.next_power_of_2(k),
        LARGEST=largest,
    )  # fmt: skip
    order = indices.argsort(dim=1)  # `select` sorts stably, so ties go to the lower index
    scores, indices = scores.gather(1, order), indices.gather(1, order)
    best, places = reference_backend.select(scores, indices < 0, k, largest)
    return best, indices.gather(1, places.clamp(min=0)).masked_fill(places < 0, -1)


def _topk_of_blocks(arguments, k, largest, filter):
    """`topk_of` for a large k: torch sorts the scores of some rows at a time."""
    rows, columns = arguments["rows"], arguments["columns"]
    out = torch.full((rows, k), torch.nan, dtype=arguments["weight"].dtype, device=arguments["query"].device)
    indices = torch.full(out.shape, -1, device=out.device)
    if not (columns and k):
        return out, indices
    # A power of 2, so that blocks of packed rows consist of whole tiles.
    step = max(MIN_TILE, 1 << (reference_backend.CHUNK // columns | 1).bit_length() - 1)
    for first in range(0, rows, step):
        n = slice(first, min(first + step, rows))
        scores = out.new_empty(1, 1, n.stop - first, columns)
        launch_score(arguments | {"query": arguments["query"][:, first:], "rows": n.stop - first}, scores)
        excluded = reference_backend.excluded_pairs(filter, n, scores[0, 0])
        best, places = reference_backend.select(scores[0, 0], excluded, k, largest)
        out[n, : best.shape[1]], indices[n, : best.shape[1]] = best, places
    return out, indices
