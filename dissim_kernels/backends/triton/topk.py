"""The k best references of each query: scores go from the tile straight into a running selection in registers.

References are cut in parts, each with a selection of its own; torch merges the few survivors. Where k is too large
for registers, torch sorts blocks of scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import Search
from .. import reference as reference_backend
from .launch import launch, parts_of
from .score import launch_score
from .tile import LARGEST_TILE, SMALLEST_TILE, operands, score_tile

#: The largest k that is selected in registers.
MOST_SELECTED = 32


@triton.jit
def rank(scores, LARGEST: tl.constexpr):
    """Integers in the order of the scores, best largest: their bits, the magnitude of negative ones turned round.

    A zero has one sign; NaN comes before every number and after what is barred, the least integer.
    """
    integer: tl.constexpr = tl.int64 if scores.dtype == tl.float64 else tl.int32
    all_ones: tl.constexpr = 0x7FFFFFFFFFFFFFFF if scores.dtype == tl.float64 else 0x7FFFFFFF
    better = scores if LARGEST else -scores
    bits = tl.where(scores == 0, 0.0, better).to(integer, bitcast=True)
    return tl.where(scores != scores, -all_ones, tl.where(bits < 0, bits ^ all_ones, bits))


@triton.jit
def _unrank(ranks, wide: tl.constexpr, LARGEST: tl.constexpr):
    """The score that has this rank; NaN for what is barred too."""
    all_ones: tl.constexpr = 0x7FFFFFFFFFFFFFFF if wide == tl.float64 else 0x7FFFFFFF
    scores = tl.where(ranks < 0, ranks ^ all_ones, ranks).to(wide, bitcast=True)
    return tl.where(ranks <= -all_ones, float("nan"), scores if LARGEST else -scores)


@triton.jit
def topk_kernel(
    query, reference, weight, bias, exclude_index, query_labels, reference_labels, out, indices, rows, columns, dim,
    k, parts, part_columns,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
    K: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """The k best of each row in each part of the columns, in no order: scores and indices out [N, parts, k]."""
    program = tl.program_id(0).to(tl.int64)
    n_blocks = tl.cdiv(rows, BN)
    n, part = program % n_blocks * BN, program // n_blocks
    rows_here, slots = n + tl.arange(0, BN), tl.arange(0, K)
    in_rows = rows_here < rows
    first = part * part_columns
    wide: tl.constexpr = weight.dtype.element_ty
    integer: tl.constexpr = tl.int64 if wide == tl.float64 else tl.int32
    BARRED: tl.constexpr = -0x8000000000000000 if wide == tl.float64 else -0x80000000
    # Slots beyond k hold what nothing displaces; empty ones are told apart by their indices.
    best = tl.zeros((BN, K), integer) + tl.where(slots < k, BARRED, -(BARRED + 1))[None, :].to(integer)
    best_at = tl.zeros((BN, K), tl.int32) - 1 - slots[None, :]
    worst = tl.min(best, 1)
    if exclude_index is not None:
        excluded = tl.load(exclude_index + rows_here, mask=in_rows, other=-1)
    if query_labels is not None:
        label = tl.load(query_labels + rows_here, mask=in_rows, other=0)
    for m in range(first, tl.minimum(first + part_columns, columns), BM):
        scores = score_tile(
            query, reference, weight, bias, n, m, rows, columns, dim,
            query_row, query_dim, reference_row, reference_dim, BN, BM, UNROLL, PACKED,
        )  # fmt: skip
        columns_here = m + tl.arange(0, BM)
        barred = (columns_here >= columns)[None, :] | (rows_here >= rows)[:, None]
        if exclude_index is not None:
            barred |= excluded[:, None] == columns_here[None, :]
        if query_labels is not None:
            other = tl.load(reference_labels + columns_here, mask=columns_here < columns, other=0)
            barred |= label[:, None] == other[None, :]
        ranks = tl.where(barred, BARRED, rank(scores, LARGEST))
        at = (m - first).to(tl.int32) + tl.arange(0, BM)
        top = tl.max(ranks, 1)
        # A tile comes after those before it, so its columns must be better to enter, and the lowest enters first.
        while tl.max((top > worst).to(tl.int32), 0) > 0:
            enters = tl.min(tl.where(ranks == top[:, None], at[None, :], 0x7FFFFFFF), 1)
            leaves = tl.max(tl.where(best == worst[:, None], best_at, -0x7FFFFFFF), 1)
            place = (best == worst[:, None]) & (best_at == leaves[:, None]) & (top > worst)[:, None]
            best = tl.where(place, top[:, None], best)
            best_at = tl.where(place, enters[:, None], best_at)
            ranks = tl.where(at[None, :] == enters[:, None], BARRED, ranks)
            top, worst = tl.max(ranks, 1), tl.min(best, 1)
    to = (rows_here[:, None] * parts + part) * k + slots[None, :]
    inside = in_rows[:, None] & (slots < k)[None, :]
    tl.store(out + to, _unrank(best, wide, LARGEST), mask=inside)
    tl.store(indices + to, tl.where(best == BARRED, -1, best_at + first), mask=inside)


def topk(search: Search) -> tuple[Tensor, Tensor]:
    """Best first, ties by lower index, NaN last: wide scores and indices [N, k]; -1 where candidates run out.

    Memory beside the result: packed copies and k survivors of each part, or a block of scores for a large k.
    """
    query, reference, weight, bias, k, largest = search[:6]
    return topk_of(operands(query[None], reference[None], weight[None], bias), k, largest, *search.filters)


def topk_of(
    given: dict, k: int, largest: bool, exclude_index: Tensor | None, query_labels: Tensor | None,
    reference_labels: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`topk` of `operands`."""
    rows, columns, wide, device = given["rows"], given["columns"], given["weight"].dtype, given["query"].device
    filters = [x if x is None else x.contiguous() for x in (exclude_index, query_labels, reference_labels)]
    if not (rows and columns and k) or k > MOST_SELECTED:
        return _from_blocks(given, k, largest, *filters)
    part, parts = parts_of(triton.cdiv(rows, LARGEST_TILE), columns, most=columns)
    scores = torch.empty(rows, parts * k, dtype=wide, device=device)
    indices = torch.empty(rows, parts * k, dtype=torch.int64, device=device)
    launch(
        topk_kernel, "topk", ("rows",), parts, wide, **given, out=scores, indices=indices,
        exclude_index=filters[0], query_labels=filters[1], reference_labels=filters[2],
        k=k, parts=parts, part_columns=part, K=triton.next_power_of_2(k), LARGEST=largest,
    )  # fmt: skip
    order = indices.argsort(dim=1)  # so that the stable sorts of `select` give ties to the lower index
    scores, indices = scores.gather(1, order), indices.gather(1, order)
    best, places = reference_backend.select(scores, indices < 0, k, largest)
    return best, indices.gather(1, places.clamp(min=0)).masked_fill(places < 0, -1)


def _from_blocks(given, k, largest, exclude_index, query_labels, reference_labels):
    rows, columns = given["rows"], given["columns"]
    out = torch.full((rows, k), torch.nan, dtype=given["weight"].dtype, device=given["query"].device)
    indices = torch.full(out.shape, -1, device=out.device)
    if not (columns and k):
        return out, indices
    # A power of 2 of rows, so that a block of packed rows begins and ends with a tile.
    step = max(SMALLEST_TILE, 1 << (reference_backend.CHUNK // columns | 1).bit_length() - 1)
    for first in range(0, rows, step):
        n = slice(first, min(first + step, rows))
        scores = out.new_empty(1, 1, n.stop - first, columns)
        launch_score(given | {"query": given["query"][:, first:], "rows": n.stop - first}, scores)
        barred = reference_backend.excluded_pairs(
            columns, exclude_index, query_labels, reference_labels, n, scores[0, 0]
        )
        best, places = reference_backend.select(scores[0, 0], barred, k, largest)
        out[n, : best.shape[1]], indices[n, : best.shape[1]] = best, places
    return out, indices
