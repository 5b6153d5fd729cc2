"""Gradients of scores by E2: sums of signs for each side by one kernel, and the weight's gradient out of the two.

Each sum has one owner and a fixed order: deterministic, without atomics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE
from .. import reference as reference_backend
from .launch import launch, parts_of
from .tile import zero_tile

#: Parts of the columns whose sums are added up afterwards, for the memory they take.
MOST_PARTS = 8


@triton.jit
def add_signs(sums, x, y, g):
    """sums [BN, BD] + g [BN] sgn(x [BN, BD] - y [BD]). E3, as torch has it: 0 at NaN, and Inf * 0 is NaN."""
    wide: tl.constexpr = sums.dtype
    sign = (x > y[None, :]).to(wide) - (x < y[None, :]).to(wide)
    return tl.fma(sign, g[:, None], sums)


@triton.jit
def load_tile(x, rows_here, dims_here, rows, dim, x_row, x_dim, like):
    """x [rows_here, dims_here] in the type and the layout of `like`; 0 outside."""
    inside = (rows_here < rows)[:, None] & (dims_here < dim)[None, :]
    return tl.load(x + rows_here[:, None] * x_row + dims_here[None, :] * x_dim, mask=inside, other=0.0).to(like.dtype)


@triton.jit
def _add_column(sums, x, y, grad, in_dim, in_rows):
    return add_signs(sums, x, tl.load(y, mask=in_dim).to(sums.dtype), tl.load(grad, mask=in_rows).to(sums.dtype))


@triton.jit
def row_sums_kernel(
    x, y, grad, out, rows, columns, dim, batches, part_columns,
    x_batch, x_row, x_dim, y_batch, y_row, y_dim, grad_batch, grad_row, grad_column,
    BN: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """out [parts, B, R, D] = sum over a part of the columns of grad [B, R, M] sgn(x [B, R, D] - y [B, M, D])."""
    program = tl.program_id(0).to(tl.int64)
    n_blocks, d_blocks = tl.cdiv(rows, BN), tl.cdiv(dim, BD)
    rows_here = program % n_blocks * BN + tl.arange(0, BN)
    dims_here = program // n_blocks % d_blocks * BD + tl.arange(0, BD)
    copy = program // n_blocks // d_blocks
    batch, first = copy % batches, copy // batches * part_columns
    count = tl.minimum(part_columns, columns - first)
    sums = zero_tile(BN, BD, out.dtype.element_ty)
    tile = load_tile(x + batch * x_batch, rows_here, dims_here, rows, dim, x_row, x_dim, sums)
    in_rows, in_dim = rows_here < rows, dims_here < dim
    y += batch * y_batch + first * y_row
    grad += batch * grad_batch + first * grad_column
    y_offsets, grad_offsets = dims_here * y_dim, rows_here * grad_row
    for _ in range(0, count // UNROLL):
        for _ in tl.static_range(UNROLL):
            sums = _add_column(sums, tile, y + y_offsets, grad + grad_offsets, in_dim, in_rows)
            y += y_row
            grad += grad_column
    for _ in range(0, count % UNROLL):
        sums = _add_column(sums, tile, y + y_offsets, grad + grad_offsets, in_dim, in_rows)
        y += y_row
        grad += grad_column
    to = out + (copy * rows + rows_here[:, None]) * dim + dims_here[None, :]
    tl.store(to, sums, mask=in_rows[:, None] & in_dim[None, :])


@triton.jit
def weight_kernel(
    query, reference, grad, out, rows, columns, dim, batches,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    grad_batch, grad_row, grad_column,
    BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """out [D] = sum of grad |q - r|, term by term, where out is not finite: E2 loses Inf - Inf. Else nothing."""
    d = tl.program_id(0).to(tl.int64)
    was = tl.load(out + d)
    if was - was == 0:
        return
    sums = tl.zeros((BN, BM), out.dtype.element_ty)
    for batch in range(0, batches):
        for n in range(0, rows, BN):
            for m in range(0, columns, BM):
                rows_here, columns_here = n + tl.arange(0, BN).to(tl.int64), m + tl.arange(0, BM).to(tl.int64)
                in_rows, in_columns = rows_here < rows, columns_here < columns
                q = tl.load(query + batch * query_batch + rows_here * query_row + d * query_dim, mask=in_rows)
                r_at = batch * reference_batch + columns_here * reference_row + d * reference_dim
                r = tl.load(reference + r_at, mask=in_columns)
                inside = in_rows[:, None] & in_columns[None, :]
                g_at = batch * grad_batch + rows_here[:, None] * grad_row + columns_here[None, :] * grad_column
                g = tl.load(grad + g_at, mask=inside).to(sums.dtype)
                term = g * tl.abs(q.to(sums.dtype)[:, None] - r.to(sums.dtype)[None, :])
                sums += tl.where(inside, term, 0.0)
    tl.store(out + d, tl.sum(tl.sum(sums, 1), 0))


def score_backward(
    grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    """E2. Memory beside the results: sums of one head and up to MOST_PARTS parts of them, in the accumulate type."""
    if query.shape[1] == reference.shape[1] == 1 or not (query.numel() and reference.numel() and weight.numel()):
        return reference_backend.score_backward(grad, query, reference, weight, needs)  # pairs, or zeros
    heads = [
        _one_head(g, query, reference, w, needs)
        for g, w in zip(grad.unbind(1), weight.to(ACCUMULATE[query.dtype]), strict=True)
    ]
    of_query, of_reference, of_weight = zip(*heads, strict=True)
    totals = (
        sum(of_query[1:], of_query[0]) if needs[0] else None,
        sum(of_reference[1:], of_reference[0]) if needs[1] else None,
        torch.stack(of_weight) if needs[2] else None,
    )
    dtypes = (query.dtype, reference.dtype, weight.dtype)
    return [t.to(dtype) for t, dtype in zip(totals, dtypes, strict=True) if t is not None]


def _one_head(grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool]) -> list:
    def sums(side: int) -> Tensor:
        return row_sums(grad.mT, reference, query) if side else row_sums(grad, query, reference)

    def mend(of_weight: Tensor) -> None:
        launch(
            weight_kernel, "weight", (), query.shape[2], of_weight.dtype, grad=grad, out=of_weight,
            batches=query.shape[0], rows=query.shape[1], columns=reference.shape[1], dim=query.shape[2],
            query=query, reference=reference, **strides(query=query, reference=reference, grad=grad),
        )  # fmt: skip

    return gradients(query, reference, weight, needs, sums, mend)


def gradients(
    query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool],
    sums: Callable[[int], Tensor], mend: Callable[[Tensor], None],
) -> list[Tensor | None]:  # fmt: skip
    """E2 for one head, wide, None where not needed.

    sums(0) is sum_m g sgn(q - r) [B, N, D] and sums(1) sum_n g sgn(r - q) [B, M, D]; mend puts a weight's gradient
    that is not finite right.
    """
    of_rows: list = [sums(side) if needs[side] or needs[2] else None for side in (0, 1)]
    of_weight = None
    if needs[2]:
        centre = reference.mean((0, 1), dtype=weight.dtype).nan_to_num(0, 0, 0)
        left, right = (((x - centre) * s).sum((0, 1)) for x, s in zip((query, reference), of_rows, strict=True))
        of_weight = left + right
        mend(of_weight)
    return [weight * s if needed else None for s, needed in zip(of_rows, needs, strict=False)] + [of_weight]


def row_sums(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_m grad [B, R, M] sgn(x [B, R, D] - y [B, M, D]): wide [B, R, D]."""
    (batch, rows, dim), columns = x.shape, y.shape[1]
    part, parts = parts_of(batch * triton.cdiv(rows, 128) * triton.cdiv(dim, 64), columns, MOST_PARTS)
    out = torch.empty(parts, batch, rows, dim, dtype=ACCUMULATE[x.dtype], device=x.device)
    launch(
        row_sums_kernel, "row_sums", ("rows", "dim"), parts * batch, out.dtype, x=x, y=y, grad=grad, out=out,
        rows=rows, columns=columns, dim=dim, batches=batch, part_columns=part, **strides(x=x, y=y, grad=grad),
    )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0)


def strides(**tensors: Tensor) -> dict[str, int]:
    """The strides of [B, rows, columns or D] by the names that kernels give them."""
    return {
        f"{name}_{axis}": stride
        for name, tensor in tensors.items()
        for axis, stride in zip(("batch", "row", "column" if name == "grad" else "dim"), tensor.stride(), strict=True)
    }
