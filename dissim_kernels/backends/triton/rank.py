"""Scores of listed pairs, and how many references come before each of them (E16)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE, RankArguments
from .launch import column_splits, launch
from .tile import MAX_TILE, operands, score_tile


@triton.jit
def listed_scores_kernel(
    query, reference, weight, bias, query_index, reference_index, out, rows, columns, dim,
    query_row, query_dim, reference_row, reference_dim, BN: tl.constexpr,
):  # fmt: skip
    """The scores of `rows` pairs out [P], with the operations and the order of dimensions of `score_tile`."""
    pair = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    in_pairs = pair < rows
    acc: tl.constexpr = weight.dtype.element_ty
    query += tl.load(query_index + pair, mask=in_pairs, other=0) * query_row
    reference += tl.load(reference_index + pair, mask=in_pairs, other=0) * reference_row
    scores = tl.zeros((BN,), acc)
    for d in range(0, dim):
        q = tl.load(query + d * query_dim, mask=in_pairs, other=0.0).to(acc)
        r = tl.load(reference + d * reference_dim, mask=in_pairs, other=0.0).to(acc)
        scores = tl.fma(tl.abs(q - r), tl.load(weight + d), scores)
    if bias is not None:
        scores += tl.load(bias)
    tl.store(out + pair, scores, mask=in_pairs)


@triton.jit
def rank_kernel(
    query, reference, weight, bias, offsets, indices, listed_scores, out, nan_rows, rows, columns, dim, split_columns,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Adds to out [P] the columns of a split that come before each listed pair, and sets nan_rows [N] to 1."""
    program = tl.program_id(0).to(tl.int64)
    n_blocks = tl.cdiv(rows, BN)
    n, split = program % n_blocks * BN, program // n_blocks
    row_index = n + tl.arange(0, BN)
    in_rows = row_index < rows
    begin = tl.load(offsets + row_index, mask=in_rows, other=0)
    end = tl.load(offsets + row_index + 1, mask=in_rows, other=0)
    longest = tl.max(end - begin, 0)
    for m in range(split * split_columns, tl.minimum((split + 1) * split_columns, columns), BM):
        scores = score_tile(
            query, reference, weight, bias, n, m, rows, columns, dim,
            query_row, query_dim, reference_row, reference_dim, BN, BM, UNROLL, PACKED,
        )  # fmt: skip
        column_index = m + tl.arange(0, BM)
        inside = in_rows[:, None] & (column_index < columns)[None, :]
        is_nan = tl.max(((scores != scores) & inside).to(tl.int32), 1)
        tl.store(nan_rows + row_index, is_nan.to(tl.uint8), mask=in_rows & (is_nan != 0))
        for i in range(0, longest):
            at = begin + i
            listed = at < end
            score = tl.load(listed_scores + at, mask=listed, other=0.0)[:, None]
            index = tl.load(indices + at, mask=listed, other=0)[:, None]
            tied_before = (scores == score) & (column_index[None, :] < index)
            before = ((scores > score) | tied_before) & inside & (column_index[None, :] != index)
            count = tl.sum(tl.where(before, 1.0, 0.0), 1)  # exact; a sum of integers would spill uniform registers
            tl.atomic_add(out + at, count.to(tl.int64), mask=listed)


def listed_scores(
    query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, indices: Tensor
) -> Tensor:
    """Scores of each query's listed references [P], bit-identical to those that `rank` compares."""
    acc = ACCUMULATE[query.dtype]
    out = query.new_empty(indices.shape, dtype=acc)
    if not len(indices):
        return out
    rows = torch.arange(len(query), device=query.device)
    given = operands(query[None], reference[None], weight[None], bias, packed=False)
    launch(
        listed_scores_kernel, "listed_scores", ("rows",), 1, acc, query=query, reference=reference,
        weight=given["weight"], bias=given["bias"], out=out, rows=len(indices), columns=len(reference),
        query_index=rows.repeat_interleave(offsets.diff(), output_size=len(indices)),
        reference_index=indices.contiguous(), dim=query.shape[1],
        query_row=query.stride(0), query_dim=query.stride(1),
        reference_row=reference.stride(0), reference_dim=reference.stride(1),
    )  # fmt: skip
    return out


def rank(given: RankArguments) -> tuple[Tensor, Tensor]:
    """How many references come before each listed pair [P], and which rows have a NaN score [N]."""
    query, reference, weight, bias, offsets, indices, scores = given
    counts = torch.zeros_like(indices)
    nan_rows = torch.zeros(len(query), dtype=torch.uint8, device=query.device)
    if len(query) and len(reference):
        split, splits = column_splits(triton.cdiv(len(query), MAX_TILE), len(reference), len(reference))
        launch(
            rank_kernel, "rank", ("rows",), splits, ACCUMULATE[query.dtype],
            **operands(query[None], reference[None], weight[None], bias), offsets=offsets.contiguous(),
            indices=indices.contiguous(), listed_scores=scores.contiguous(), out=counts, nan_rows=nan_rows,
            split_columns=split,
        )  # fmt: skip
    return counts, nan_rows.bool()
