"""The hinge loss of labelled rows: sums of a row and a bit for each active pair (E12); gradients from the bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE, Hinge, HingeBackward
from .. import reference as reference_backend
from .launch import launch, parts_of
from .score_backward import MOST_PARTS, add_signs, gradients, load_tile, strides
from .tile import LARGEST_TILE, operands, score_tile, zero_tile
from .topk import rank, topk_of

#: Pairs of which at most one is active are worked off one by one (csrc/cuda/sparse_gradient.cuh says why so many).
FEW = 16


@triton.jit
def hinge_kernel(
    query, reference, weight, bias, query_labels, reference_labels, exclude_index, limits, limit_indices, margin,
    out, active, rows, columns, dim, part_columns,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Sums of a part of the columns out [parts, 2, N], positives first, and active [N, ceil(M / 8)].

    limits, limit_indices: of a query's negatives only those up to this one are kept, in the order of top-k; None, or
    an index of -1, keeps all.
    """
    program = tl.program_id(0).to(tl.int64)
    n_blocks = tl.cdiv(rows, BN)
    n, part = program % n_blocks * BN, program // n_blocks
    rows_here, bits, bytes_here = n + tl.arange(0, BN), tl.arange(0, 8), tl.arange(0, BM // 8)
    in_rows, row_bytes = rows_here < rows, tl.cdiv(columns, 8)
    wide: tl.constexpr = weight.dtype.element_ty
    label = tl.load(query_labels + rows_here, mask=in_rows, other=0)
    if exclude_index is not None:
        excluded = tl.load(exclude_index + rows_here, mask=in_rows, other=-1)
    if limits is not None:
        limit = rank(tl.load(limits + rows_here, mask=in_rows, other=0.0), True)
        limit_at = tl.load(limit_indices + rows_here, mask=in_rows, other=-1)
    edge = tl.load(margin)
    positive, negative = tl.zeros((BN,), wide), tl.zeros((BN,), wide)
    for m in range(part * part_columns, tl.minimum((part + 1) * part_columns, columns), BM):
        scores = score_tile(
            query, reference, weight, bias, n, m, rows, columns, dim,
            query_row, query_dim, reference_row, reference_dim, BN, BM, UNROLL, PACKED,
        )  # fmt: skip
        columns_here = m + tl.arange(0, BM)
        other = tl.load(reference_labels + columns_here, mask=columns_here < columns, other=0)
        same = label[:, None] == other[None, :]
        kept = in_rows[:, None] & (columns_here < columns)[None, :]
        if exclude_index is not None:
            kept &= excluded[:, None] != columns_here[None, :]
        if limits is not None:
            ranks = rank(scores, True)
            hard = (ranks == limit[:, None]) & (columns_here[None, :] <= limit_at[:, None])
            kept &= same | hard | (ranks > limit[:, None]) | (limit_at < 0)[:, None]
        violation = tl.where(same, edge - scores, edge + scores)
        violation = tl.where(kept, tl.where(violation <= 0, 0.0, violation), 0.0)  # NaN stays
        positive += tl.sum(tl.where(same, violation, 0.0), 1)
        negative += tl.sum(tl.where(same, 0.0, violation), 1)
        inside = tl.reshape((violation > 0).to(tl.int32), (BN, BM // 8, 8))
        packed = tl.sum(inside << bits[None, None, :], 2).to(tl.uint8)
        at = m // 8 + bytes_here
        to = active + rows_here[:, None] * row_bytes + at[None, :]
        tl.store(to, packed, mask=in_rows[:, None] & (at < row_bytes)[None, :])
    to = out + part * 2 * rows + rows_here
    tl.store(to, positive, mask=in_rows)
    tl.store(to + rows, negative, mask=in_rows)


@triton.jit
def _gradient(byte, bit, same, positive, negative):
    """The score's gradient where the bit is set: -positive for pairs of one label, else negative (E12)."""
    return tl.where((byte.to(tl.int32) >> bit) & 1 != 0, tl.where(same, -positive, negative), 0.0)


@triton.jit
def hinge_row_sums_kernel(
    x, y, active, x_labels, y_labels, positive, negative, few, out, rows, columns, dim, row_bytes, part_columns,
    x_batch, x_row, x_dim, y_batch, y_row, y_dim,
    BN: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr, OF_QUERY: tl.constexpr,
):  # fmt: skip
    """out [parts, R, D] = sum over a part of the columns of the pairs' gradients times sgn(x - y).

    x is the query and y the reference, or the other way round without OF_QUERY. Nothing is done where few pairs are
    active.
    """
    if tl.load(few) != 0:
        return
    program = tl.program_id(0).to(tl.int64)
    n_blocks, d_blocks = tl.cdiv(rows, BN), tl.cdiv(dim, BD)
    rows_here = program % n_blocks * BN + tl.arange(0, BN)
    dims_here = program // n_blocks % d_blocks * BD + tl.arange(0, BD)
    part = program // n_blocks // d_blocks
    in_rows, in_dim = rows_here < rows, dims_here < dim
    sums = zero_tile(BN, BD, out.dtype.element_ty)
    tile = load_tile(x, rows_here, dims_here, rows, dim, x_row, x_dim, sums)
    x_label = tl.load(x_labels + rows_here, mask=in_rows)
    if OF_QUERY:
        of_positive = tl.load(positive + rows_here, mask=in_rows)
        of_negative = tl.load(negative + rows_here, mask=in_rows)
    for block in range(part * part_columns, tl.minimum((part + 1) * part_columns, columns), UNROLL):
        for step in tl.static_range(UNROLL):
            column = block + step
            inside = column < columns
            in_pairs = rows_here < tl.where(inside, rows, 0)
            same = x_label == tl.load(y_labels + column, mask=inside)
            if OF_QUERY:
                byte = tl.load(active + rows_here * row_bytes + column // 8, mask=in_pairs, other=0)
                bit = (column % 8).to(tl.int32)
            else:
                byte = tl.load(active + column * row_bytes + rows_here // 8, mask=in_pairs, other=0)
                bit = (rows_here % 8).to(tl.int32)
                of_positive = tl.load(positive + column, mask=inside)
                of_negative = tl.load(negative + column, mask=inside)
            g = _gradient(byte, bit, same, of_positive, of_negative)
            in_other = dims_here < tl.where(inside, dim, 0)
            other = tl.load(y + column * y_row + dims_here * y_dim, mask=in_other)
            sums = add_signs(sums, tile, other.to(sums.dtype), g)
    to = out + (part * rows + rows_here[:, None]) * dim + dims_here[None, :]
    tl.store(to, sums, mask=in_rows[:, None] & in_dim[None, :])


@triton.jit
def hinge_few_row_sums_kernel(
    x, y, active, x_labels, y_labels, positive, negative, few, out, rows, columns, dim, row_bytes, part_columns,
    x_batch, x_row, x_dim, y_batch, y_row, y_dim, BD: tl.constexpr, OF_QUERY: tl.constexpr,
):  # fmt: skip
    """What hinge_row_sums_kernel does, where few pairs are active: a program works off those of one row."""
    if tl.load(few) == 0:
        return
    program, d_blocks = tl.program_id(0).to(tl.int64), tl.cdiv(dim, BD)
    dims_here = program % d_blocks * BD + tl.arange(0, BD)
    row, part = program // d_blocks % rows, program // d_blocks // rows
    in_dim, steps, x_label = dims_here < dim, tl.arange(0, 32), tl.load(x_labels + row)
    own = tl.load(x + row * x_row + dims_here * x_dim, mask=in_dim, other=0.0).to(out.dtype.element_ty)[None, :]
    sums = tl.zeros_like(own)
    for first in range(part * part_columns, tl.minimum((part + 1) * part_columns, columns), 32):
        columns_here = first + steps
        if OF_QUERY:
            at, bit = row * row_bytes + columns_here // 8, columns_here % 8
        else:
            at, bit = columns_here * row_bytes + row // 8, row % 8
        byte = tl.load(active + at, mask=columns_here < columns, other=0)
        left = tl.sum((byte.to(tl.uint32) >> bit.to(tl.uint32) & 1) << steps.to(tl.uint32), 0)
        while left != 0:
            lowest = left & (~left + 1)
            exponent = lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23
            column = first + exponent - 127
            pair = column if not OF_QUERY else row
            same = x_label == tl.load(y_labels + column)
            g = tl.where(same, -tl.load(positive + pair), tl.load(negative + pair))
            other = tl.load(y + column * y_row + dims_here * y_dim, mask=in_dim, other=0.0).to(sums.dtype)
            sums = add_signs(sums, own, other, tl.full((1,), g, sums.dtype))
            left ^= lowest
    to = out + (part * rows + row) * dim + dims_here[None, :]
    tl.store(to, sums, mask=in_dim[None, :])


@triton.jit
def hinge_pair_sums_kernel(
    query, reference, active, query_labels, reference_labels, positive, negative, out, rows, columns, dim, row_bytes,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, OF_WEIGHT: tl.constexpr,
):  # fmt: skip
    """out [N] = sum of the pairs' gradients; or OF_WEIGHT out [D] = sum of them times |q - r| where it is not finite.

    E2 loses Inf - Inf, so there the weight's gradient is added term by term.
    """
    program = tl.program_id(0).to(tl.int64)
    first, last = program * BN, tl.minimum(program * BN + BN, rows)
    if OF_WEIGHT:
        was = tl.load(out + program)
        if was - was == 0:
            return
        first, last = program * 0, program * 0 + rows
    sums = tl.zeros((BN, BM), out.dtype.element_ty)
    for n in range(first, last, BN):
        rows_here = n + tl.arange(0, BN)
        in_rows = rows_here < rows
        label = tl.load(query_labels + rows_here, mask=in_rows)
        of_positive = tl.load(positive + rows_here, mask=in_rows)[:, None]
        of_negative = tl.load(negative + rows_here, mask=in_rows)[:, None]
        for m in range(0, columns, BM):
            columns_here = m + tl.arange(0, BM).to(tl.int64)
            in_columns = columns_here < columns
            inside = in_rows[:, None] & in_columns[None, :]
            same = label[:, None] == tl.load(reference_labels + columns_here, mask=in_columns)[None, :]
            at = active + rows_here[:, None] * row_bytes + columns_here[None, :] // 8
            byte = tl.load(at, mask=inside, other=0)
            g = _gradient(byte, (columns_here % 8).to(tl.int32)[None, :], same, of_positive, of_negative)
            if OF_WEIGHT:
                q = tl.load(query + rows_here * query_row + program * query_dim, mask=in_rows).to(sums.dtype)
                r_at = columns_here * reference_row + program * reference_dim
                r = tl.load(reference + r_at, mask=in_columns).to(sums.dtype)
                g = tl.where(inside, g * tl.abs(q[:, None] - r[None, :]), 0.0)
            sums += g
    if OF_WEIGHT:
        tl.store(out + program, tl.sum(tl.sum(sums, 1), 0))
    else:
        rows_here = program * BN + tl.arange(0, BN)
        tl.store(out + rows_here, tl.sum(sums, 1), mask=rows_here < rows)


def hinge(given: Hinge) -> tuple[Tensor, Tensor, Tensor]:
    """Row sums of the positives' and the negatives' hinge [N], [N], and the active bits [N, ceil(M / 8)].

    With num_hard_negatives two scans, of which the first finds each row's last negative that counts.
    """
    query, reference, weight, bias, query_labels, reference_labels, exclude_index, margin, num_hard_negatives = given
    rows, columns, wide = query.shape[0], reference.shape[0], ACCUMULATE[query.dtype]
    active = torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8, device=query.device)
    if not (rows and columns):
        empty = torch.zeros(rows, dtype=wide, device=query.device)
        return empty, empty.clone(), active
    pairs = operands(query[None], reference[None], weight[None], bias)
    labels = [x.contiguous() for x in (query_labels, reference_labels)]
    exclude_index = None if exclude_index is None else exclude_index.contiguous()
    limits = indices = None
    if num_hard_negatives is not None:
        k = min(num_hard_negatives, columns)
        limits, indices = topk_of(pairs, max(1, k), True, exclude_index, *labels)
        limits, indices = limits[:, -1].contiguous(), indices[:, -1].contiguous()
        if k == 0:  # beyond every score, with an index before all
            limits, indices = torch.full_like(limits, torch.inf), torch.zeros_like(indices)
    part, parts = parts_of(triton.cdiv(rows, LARGEST_TILE), columns, columns)
    out = torch.empty(parts, 2, rows, dtype=wide, device=query.device)
    launch(
        hinge_kernel, "hinge", ("rows",), parts, wide, **pairs, query_labels=labels[0], reference_labels=labels[1],
        exclude_index=exclude_index, limits=limits, limit_indices=indices,
        margin=torch.full((1,), margin, dtype=wide, device=query.device), out=out, active=active, part_columns=part,
    )  # fmt: skip
    return out[:, 0].sum(0), out[:, 1].sum(0), active


def few_active(active: Tensor, pairs: int) -> Tensor:
    """Whether at most one of FEW pairs has a bit, [1]: on the device, so that no host waits for it."""
    bits = (active & 0x55) + (active >> 1 & 0x55)
    bits = (bits & 0x33) + (bits >> 2 & 0x33)
    return ((bits & 0xF) + (bits >> 4)).sum().le(pairs // FEW).to(torch.int32).reshape(1)


def hinge_backward(given: HingeBackward, needs: Sequence[bool]) -> list[Tensor]:
    """E12 and E2. Those needed of [N, D], [M, D], [D], [1]."""
    grad_positive, grad_negative, active, query, reference, weight, query_labels, reference_labels = given
    if not (query.numel() and reference.numel()):
        return reference_backend.hinge_backward(given, needs)  # zeros
    wide, (rows, dim), columns = ACCUMULATE[query.dtype], query.shape, reference.shape[0]
    pairs = dict(
        active=active.contiguous(), row_bytes=active.shape[1],
        positive=grad_positive.contiguous(), negative=grad_negative.contiguous(),
    )  # fmt: skip
    sides = ((query[None], query_labels.contiguous()), (reference[None], reference_labels.contiguous()))

    few = few_active(active, rows * columns)

    def row_sums(side: int) -> Tensor:
        (x, x_labels), (y, y_labels) = sides[side], sides[1 - side]
        count, others = x.shape[1], y.shape[1]
        part, parts = parts_of(triton.cdiv(count, 128) * triton.cdiv(dim, 64), others, MOST_PARTS)
        out = torch.empty(parts, 1, count, dim, dtype=wide, device=x.device)
        for kernel, name, axes, copies in (
            (hinge_row_sums_kernel, "hinge_row_sums", ("rows", "dim"), parts),
            (hinge_few_row_sums_kernel, "hinge_few_row_sums", ("dim",), parts * count),
        ):
            launch(
                kernel, name, axes, copies, wide, x=x, y=y, out=out, **pairs, few=few, x_labels=x_labels,
                y_labels=y_labels, rows=count, columns=others, dim=dim, part_columns=part, OF_QUERY=side == 0,
                **strides(x=x, y=y),
            )  # fmt: skip
        return out.sum(0)

    def pair_sums(out: Tensor, axes: tuple[str, ...]) -> None:
        (q, q_labels), (r, r_labels) = sides
        launch(
            hinge_pair_sums_kernel, "hinge_pair_sums", axes, 1 if axes else dim, wide, query=q, reference=r, out=out,
            **pairs, query_labels=q_labels, reference_labels=r_labels, rows=rows, columns=columns, dim=dim,
            OF_WEIGHT=not axes, **strides(query=q, reference=r),
        )  # fmt: skip

    found: list = gradients(
        query[None], reference[None], weight.to(wide), needs[:3], row_sums, lambda of_weight: pair_sums(of_weight, ())
    )
    if needs[3]:
        of_rows = torch.empty(rows, dtype=wide, device=query.device)
        pair_sums(of_rows, ("rows",))
        found.append(of_rows.sum().reshape(1))
    shapes = (
        (query.shape, query.dtype),
        (reference.shape, reference.dtype),
        (weight.shape, weight.dtype),
        ((1,), wide),
    )
    return [g.reshape(shape).to(dtype) for g, (shape, dtype) in zip(found, shapes, strict=False) if g is not None]
