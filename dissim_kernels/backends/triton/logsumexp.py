"""The log-sum-exp of each row of scores (E15): running sums in registers and one bit for each pair.

Each split of the references has sums of its own, which torch merges. Backward is that of logsumexp_bands.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE, LogSumExpArguments, LogSumExpBackwardArguments
from .. import logsumexp_bands
from .candidates import candidates, filter_operands
from .launch import column_splits, launch
from .score import score
from .score_backward import score_backward
from .tile import MAX_TILE, operands, score_tile


@triton.jit
def _store_bits(active, flags, row_index, m, rows, columns, BN: tl.constexpr, BM: tl.constexpr):
    """Packs flags [BN, BM] into the bytes of columns m..: 8 columns a byte, the first one lowest."""
    row_bytes, at = tl.cdiv(columns, 8), m // 8 + tl.arange(0, BM // 8)
    bits = tl.reshape(flags.to(tl.int32), (BN, BM // 8, 8)) << tl.arange(0, 8)[None, None, :]
    to = active + row_index[:, None] * row_bytes + at[None, :]
    tl.store(to, tl.sum(bits, 2).to(tl.uint8), mask=(row_index < rows)[:, None] & (at < row_bytes)[None, :])


@triton.jit
def _shift_of(largest):
    """What is subtracted from the logits: the largest, or 0 where that is infinite."""
    return tl.where(largest - largest == 0, largest, 0.0)


@triton.jit
def logsumexp_kernel(
    query, reference, weight, bias, scale, query_labels, reference_labels, exclude_index, out, active,
    rows, columns, dim, split_columns, min_share,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr, AMONG_SAME: tl.constexpr,
):  # fmt: skip
    """Over the columns of a split, out [splits, 3, N]: the largest logit, the sum of exp(logit - shift), and the sum
    of that times the score; and active [N, ceil(M / 8)]."""
    program = tl.program_id(0).to(tl.int64)
    n_blocks = tl.cdiv(rows, BN)
    n, split = program % n_blocks * BN, program // n_blocks
    row_index = n + tl.arange(0, BN)
    acc: tl.constexpr = weight.dtype.element_ty
    factor, share = tl.load(scale), tl.load(min_share)
    largest = tl.full((BN,), float("-inf"), acc)
    total, weighted = tl.zeros((BN,), acc), tl.zeros((BN,), acc)
    for m in range(split * split_columns, tl.minimum((split + 1) * split_columns, columns), BM):
        scores = score_tile(
            query, reference, weight, bias, n, m, rows, columns, dim,
            query_row, query_dim, reference_row, reference_dim, BN, BM, UNROLL, PACKED,
        )  # fmt: skip
        kept = candidates(
            row_index, m + tl.arange(0, BM), rows, columns, exclude_index, query_labels, reference_labels, AMONG_SAME
        )
        logits = tl.where(kept, scores * factor, float("-inf"))
        tile_max = tl.max(tl.where(logits == logits, logits, float("-inf")), 1)
        next_largest = tl.maximum(largest, tile_max)
        shift = _shift_of(next_largest)
        terms = tl.exp(logits - shift[:, None])
        rescale = tl.where(total == 0, 0.0, tl.exp(_shift_of(largest) - shift))
        total = total * rescale + tl.sum(terms, 1)
        weighted = weighted * rescale + tl.sum(tl.where(terms == 0, 0.0, terms * scores), 1)
        largest = next_largest
        is_small = terms <= share * total[:, None]  # not so for NaN
        _store_bits(active, kept & (is_small == 0), row_index, m, rows, columns, BN, BM)
    to = out + split * 3 * rows + row_index
    tl.store(to, largest, mask=row_index < rows)
    tl.store(to + rows, total, mask=row_index < rows)
    tl.store(to + 2 * rows, weighted, mask=row_index < rows)


@triton.jit
def logsumexp_nan_rows_kernel(
    out, active, query_labels, reference_labels, exclude_index, rows, columns, dim,
    BN: tl.constexpr, BM: tl.constexpr, AMONG_SAME: tl.constexpr,
):  # fmt: skip
    """Sets the bits of all kept pairs of the rows whose value in out [N] is NaN or infinity, for NaN gradients."""
    row_index = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    value = tl.load(out + row_index, mask=row_index < rows, other=0.0)
    nan_rows = tl.where(value < float("inf"), rows, row_index)
    if tl.min(nan_rows, 0) < rows:
        for m in range(0, columns, BM):
            kept = candidates(
                nan_rows, m + tl.arange(0, BM), rows, columns, exclude_index, query_labels, reference_labels,
                AMONG_SAME,
            )  # fmt: skip
            _store_bits(active, kept, nan_rows, m, rows, columns, BN, BM)


def logsumexp(given: LogSumExpArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp and mean score of each row [N], [N], and the active bits [N, ceil(M / 8)] (E15)."""
    query, reference, weight, bias, scale = given[:5]
    rows, columns, acc = query.shape[0], reference.shape[0], ACCUMULATE[query.dtype]
    active = torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8, device=query.device)
    if not (rows and columns):
        value = torch.full((rows,), -torch.inf, dtype=acc, device=query.device)
        return value, torch.zeros_like(value), active
    filters = filter_operands(given.filter)
    split, splits = column_splits(triton.cdiv(rows, MAX_TILE), columns, columns)
    out = torch.empty(splits, 3, rows, dtype=acc, device=query.device)
    launch(
        logsumexp_kernel, "logsumexp", ("rows",), splits, acc,
        **operands(query[None], reference[None], weight[None], bias), **filters, scale=scale.contiguous(), out=out,
        active=active, split_columns=split,
        min_share=torch.full((1,), torch.finfo(acc).eps / 2 / columns, dtype=acc, device=query.device),
    )  # fmt: skip
    value, mean_score = _merge(*out.unbind(1))
    launch(
        logsumexp_nan_rows_kernel, "logsumexp_nan_rows", ("rows",), 1, acc, out=value, active=active, **filters,
        rows=rows, columns=columns, dim=query.shape[1],
    )  # fmt: skip
    return value, mean_score, active


def _merge(largest: Tensor, total: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and mean score [N] from those of the splits [splits, N]."""
    row_largest = largest.amax(0)
    shifts, shift = (torch.where(x.isfinite(), x, 0) for x in (largest, row_largest))
    factor = torch.where(total == 0, 0, (shifts - shift).exp())
    sums, weighted_sums = (total * factor).sum(0), (weighted * factor).sum(0)
    return sums.log() + shift, torch.where(sums == 0, 0, weighted_sums / sums)


def logsumexp_backward(given: LogSumExpBackwardArguments, needs: Sequence[bool]) -> list[Tensor]:
    """The gradients of query, reference and weight that are needed, from all pairs of bands of references."""
    return logsumexp_bands.backward(score, score_backward, given, needs)
