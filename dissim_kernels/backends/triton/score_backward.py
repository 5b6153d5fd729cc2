"""Gradients of the score (E2): one kernel computes the sign sums of a side, torch the weight's gradient from both.

Each sum is computed by one program in a fixed order, so results are deterministic without atomics. The main loop of
`row_sums_kernel`, for rows x and columns y of the two sides:

    for column in columns of the split:
        sums[BN, BD] += grad[n:n + BN, column, None] * sign(x[n:n + BN, d:d + BD] - y[None, column, d:d + BD])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE
from .. import reference as reference_backend
from .launch import column_splits, launch
from .tile import zero_tile

#: Splits of the columns at most, because each has sums of its own in memory, which are added afterwards.
MAX_SPLITS = 8


@triton.jit
def add_signs(sums, x, y, g):
    """sums [BN, BD] + g [BN] sign(x [BN, BD] - y [BD]), with sign(NaN) = 0 (E3). Inf * 0 is NaN, as in torch."""
    acc: tl.constexpr = sums.dtype
    sign = (x > y[None, :]).to(acc) - (x < y[None, :]).to(acc)
    return tl.fma(sign, g[:, None], sums)


@triton.jit
def load_tile(x, row_index, dim_index, rows, dim, x_row, x_dim, like):
    """x [row_index, dim_index] in the dtype and register layout of `like`; 0 outside."""
    inside = (row_index < rows)[:, None] & (dim_index < dim)[None, :]
    return tl.load(x + row_index[:, None] * x_row + dim_index[None, :] * x_dim, mask=inside, other=0.0).to(like.dtype)


@triton.jit
def _add_column(sums, x, y, grad, in_dim, in_rows):
    return add_signs(sums, x, tl.load(y, mask=in_dim).to(sums.dtype), tl.load(grad, mask=in_rows).to(sums.dtype))


@triton.jit
def row_sums_kernel(
    x, y, grad, out, rows, columns, dim, batches, split_columns,
    x_batch, x_row, x_dim, y_batch, y_row, y_dim, grad_batch, grad_row, grad_column,
    BN: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """out [splits, B, R, D] = sum over the columns of a split of grad [B, R, M] sign(x [B, R, D] - y [B, M, D])."""
    program = tl.program_id(0).to(tl.int64)
    n_blocks, d_blocks = tl.cdiv(rows, BN), tl.cdiv(dim, BD)
    row_index = program % n_blocks * BN + tl.arange(0, BN)
    dim_index = program // n_blocks % d_blocks * BD + tl.arange(0, BD)
    copy = program // n_blocks // d_blocks
    batch, first = copy % batches, copy // batches * split_columns
    count = tl.minimum(split_columns, columns - first)
    sums = zero_tile(BN, BD, out.dtype.element_ty)
    tile = load_tile(x + batch * x_batch, row_index, dim_index, rows, dim, x_row, x_dim, sums)
    in_rows, in_dim = row_index < rows, dim_index < dim
    y += batch * y_batch + first * y_row
    grad += batch * grad_batch + first * grad_column
    y_offsets, grad_offsets = dim_index * y_dim, row_index * grad_row
    for _ in range(0, count // UNROLL):
        for _ in tl.static_range(UNROLL):
            sums = _add_column(sums, tile, y + y_offsets, grad + grad_offsets, in_dim, in_rows)
            y += y_row
            grad += grad_column
    for _ in range(0, count % UNROLL):
        sums = _add_column(sums, tile, y + y_offsets, grad + grad_offsets, in_dim, in_rows)
        y += y_row
        grad += grad_column
    to = out + (copy * rows + row_index[:, None]) * dim + dim_index[None, :]
    tl.store(to, sums, mask=in_rows[:, None] & in_dim[None, :])


@triton.jit
def weight_kernel(
    query, reference, grad, out, rows, columns, dim, batches,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    grad_batch, grad_row, grad_column,
    BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Recomputes values of out [D] that are not finite as the sum over pairs of grad |q - r| (E2)."""
    d = tl.program_id(0).to(tl.int64)
    by_rows = tl.load(out + d)
    if by_rows - by_rows == 0:  # finite
        return
    sums = tl.zeros((BN, BM), out.dtype.element_ty)
    for batch in range(0, batches):
        for n in range(0, rows, BN):
            for m in range(0, columns, BM):
                row_index, column_index = n + tl.arange(0, BN).to(tl.int64), m + tl.arange(0, BM).to(tl.int64)
                in_rows, in_columns = row_index < rows, column_index < columns
                q = tl.load(query + batch * query_batch + row_index * query_row + d * query_dim, mask=in_rows)
                r_at = batch * reference_batch + column_index * reference_row + d * reference_dim
                r = tl.load(reference + r_at, mask=in_columns)
                inside = in_rows[:, None] & in_columns[None, :]
                g_at = batch * grad_batch + row_index[:, None] * grad_row + column_index[None, :] * grad_column
                g = tl.load(grad + g_at, mask=inside).to(sums.dtype)
                term = g * tl.abs(q.to(sums.dtype)[:, None] - r.to(sums.dtype)[None, :])
                sums += tl.where(inside, term, 0.0)
    tl.store(out + d, tl.sum(tl.sum(sums, 1), 0))


def score_backward(
    grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    """E2. Memory in addition to the results: up to MAX_SPLITS copies of one head's sums, in the accumulator dtype."""
    if query.shape[1] == reference.shape[1] == 1 or not (query.numel() and reference.numel() and weight.numel()):
        return reference_backend.score_backward(grad, query, reference, weight, needs)  # row-aligned pairs, or zeros
    heads = [
        _one_head(g, query, reference, w, needs)
        for g, w in zip(grad.unbind(1), weight.to(ACCUMULATE[query.dtype]), strict=True)
    ]
    grads_query, grads_reference, grads_weight = zip(*heads, strict=True)
    totals = (
        sum(grads_query[1:], grads_query[0]) if needs[0] else None,
        sum(grads_reference[1:], grads_reference[0]) if needs[1] else None,
        torch.stack(grads_weight) if needs[2] else None,
    )
    dtypes = (query.dtype, reference.dtype, weight.dtype)
    return [t.to(dtype) for t, dtype in zip(totals, dtypes, strict=True) if t is not None]


def _one_head(grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool]) -> list:
    def sign_sums(side: int) -> Tensor:
        return row_sums(grad.mT, reference, query) if side else row_sums(grad, query, reference)

    def fix_nonfinite(grad_weight: Tensor) -> None:
        launch(
            weight_kernel, "weight", (), query.shape[2], grad_weight.dtype, grad=grad, out=grad_weight,
            batches=query.shape[0], rows=query.shape[1], columns=reference.shape[1], dim=query.shape[2],
            query=query, reference=reference, **strides(query=query, reference=reference, grad=grad),
        )  # fmt: skip

    return gradients(query, reference, weight, needs, sign_sums, fix_nonfinite)


def gradients(
    query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool],
    sign_sums: Callable[[int], Tensor], fix_nonfinite: Callable[[Tensor], None],
) -> list[Tensor | None]:  # fmt: skip
    """E2 for one head, in the accumulator dtype; None where not needed.

    sign_sums(0) returns A = sum_m g sign(q - r) [B, N, D], sign_sums(1) returns -B = sum_n g sign(r - q) [B, M, D].
    fix_nonfinite(grad_weight) recomputes values that are not finite, in place.
    """
    sums: list = [sign_sums(side) if needs[side] or needs[2] else None for side in (0, 1)]
    grad_weight = None
    if needs[2]:
        center = reference.mean((0, 1), dtype=weight.dtype).nan_to_num(0, 0, 0)
        query_sum, reference_sum = (
            ((x - center) * s).sum((0, 1)) for x, s in zip((query, reference), sums, strict=True)
        )
        grad_weight = query_sum + reference_sum
        fix_nonfinite(grad_weight)
    return [weight * s if needed else None for s, needed in zip(sums, needs, strict=False)] + [grad_weight]


def row_sums(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_m grad [B, R, M] sign(x [B, R, D] - y [B, M, D]): [B, R, D] in the accumulator dtype."""
    (batch, rows, dim), columns = x.shape, y.shape[1]
    programs = batch * triton.cdiv(rows, 128) * triton.cdiv(dim, 64)
    split_columns, splits = column_splits(programs, columns, MAX_SPLITS)
    out = torch.empty(splits, batch, rows, dim, dtype=ACCUMULATE[x.dtype], device=x.device)
    launch(
        row_sums_kernel, "row_sums", ("rows", "dim"), splits * batch, out.dtype, x=x, y=y, grad=grad, out=out,
        rows=rows, columns=columns, dim=dim, batches=batch, split_columns=split_columns,
        **strides(x=x, y=y, grad=grad),
    )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0)


def strides(**tensors: Tensor) -> dict[str, int]:
    """The strides of tensors [B, rows, D] and of `grad` [B, rows, columns], as the kernels name them."""
    return {
        f"{name}_{axis}": stride
        for name, tensor in tensors.items()
        for axis, stride in zip(("batch", "row", "column" if name == "grad" else "dim"), tensor.stride(), strict=True)
    }
