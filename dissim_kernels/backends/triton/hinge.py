"""The hinge loss of labeled rows (E12): sums per row, one bit per active pair, and the gradients from these bits.

`active` is uint8 [N, ceil(M / 8)]: bit m % 8 of byte m // 8 in row n belongs to pair (n, m). The gradient of a score
is

    g[n, m] = active bit * (same label ? -grad_positive[n] : grad_negative[n])

Backward has two kernels for the sign sums of a side. Both are launched, and the one that is not needed returns at
once:

- `hinge_row_sums_kernel` processes all pairs, as row_sums_kernel of the score does, with g from the bits;
- `hinge_sparse_row_sums_kernel` processes active pairs only, if at most one of SPARSE_PAIRS pairs is active.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE, Filter, HingeArguments, HingeBackwardArguments
from .. import reference as reference_backend
from .launch import column_splits, launch
from .score_backward import MAX_SPLITS, add_signs, gradients, load_tile, strides
from .tile import MAX_TILE, operands, score_tile, zero_tile
from .topk import rank, topk_of

#: Pairs count as sparse if at most one in this many is active (csrc/cuda/sparse_gradient.cuh has the reason).
SPARSE_PAIRS = 16
#: Columns whose bits a program of the sparse kernel reads together, as one 32-bit word.
WORD = tl.constexpr(32)


@triton.jit
def hinge_kernel(
    query, reference, weight, bias, query_labels, reference_labels, exclude_index, limits, limit_indices, margin,
    out, active, rows, columns, dim, split_columns,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Sums over the columns of a split, out [splits, 2, N] with positives first, and active [N, ceil(M / 8)].

    limits, limit_indices: score and index of each query's last hard negative; negatives after it in the order of
    top-k are not kept. None, or an index of -1, keeps all.
    """
    program = tl.program_id(0).to(tl.int64)
    n_blocks = tl.cdiv(rows, BN)
    n, split = program % n_blocks * BN, program // n_blocks
    row_index, bits, bytes_here = n + tl.arange(0, BN), tl.arange(0, 8), tl.arange(0, BM // 8)
    in_rows, row_bytes = row_index < rows, tl.cdiv(columns, 8)
    acc: tl.constexpr = weight.dtype.element_ty
    label = tl.load(query_labels + row_index, mask=in_rows, other=0)
    if exclude_index is not None:
        excluded_row = tl.load(exclude_index + row_index, mask=in_rows, other=-1)
    if limits is not None:
        limit = rank(tl.load(limits + row_index, mask=in_rows, other=0.0), True)
        limit_index = tl.load(limit_indices + row_index, mask=in_rows, other=-1)
    margin_value = tl.load(margin)
    positive, negative = tl.zeros((BN,), acc), tl.zeros((BN,), acc)
    for m in range(split * split_columns, tl.minimum((split + 1) * split_columns, columns), BM):
        scores = score_tile(
            query, reference, weight, bias, n, m, rows, columns, dim,
            query_row, query_dim, reference_row, reference_dim, BN, BM, UNROLL, PACKED,
        )  # fmt: skip
        column_index = m + tl.arange(0, BM)
        other = tl.load(reference_labels + column_index, mask=column_index < columns, other=0)
        same = label[:, None] == other[None, :]
        kept = in_rows[:, None] & (column_index < columns)[None, :]
        if exclude_index is not None:
            kept &= excluded_row[:, None] != column_index[None, :]
        if limits is not None:
            ranks = rank(scores, True)
            tied_with_limit = (ranks == limit[:, None]) & (column_index[None, :] <= limit_index[:, None])
            kept &= same | tied_with_limit | (ranks > limit[:, None]) | (limit_index < 0)[:, None]
        violation = tl.where(same, margin_value - scores, margin_value + scores)
        violation = tl.where(kept, tl.where(violation <= 0, 0.0, violation), 0.0)  # keeps NaN
        positive += tl.sum(tl.where(same, violation, 0.0), 1)
        negative += tl.sum(tl.where(same, 0.0, violation), 1)
        inside = tl.reshape((violation > 0).to(tl.int32), (BN, BM // 8, 8))
        packed = tl.sum(inside << bits[None, None, :], 2).to(tl.uint8)
        at = m // 8 + bytes_here
        to = active + row_index[:, None] * row_bytes + at[None, :]
        tl.store(to, packed, mask=in_rows[:, None] & (at < row_bytes)[None, :])
    to = out + split * 2 * rows + row_index
    tl.store(to, positive, mask=in_rows)
    tl.store(to + rows, negative, mask=in_rows)


@triton.jit
def _score_gradient(byte, bit, same, positive, negative):
    """g of E12: if the bit is set, -positive for a pair of one label, else negative; 0 if it is not set."""
    return tl.where((byte.to(tl.int32) >> bit) & 1 != 0, tl.where(same, -positive, negative), 0.0)


@triton.jit
def hinge_row_sums_kernel(
    x, y, active, x_labels, y_labels, positive, negative, is_sparse, out,
    rows, columns, dim, row_bytes, split_columns, x_batch, x_row, x_dim, y_batch, y_row, y_dim,
    BN: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr, X_IS_QUERY: tl.constexpr,
):  # fmt: skip
    """out [splits, R, D] = sum over the columns of a split of g sign(x - y), unless the pairs are sparse.

    X_IS_QUERY: x is the query and y the reference; otherwise the other way round. positive, negative: upstream
    gradients of the query rows.
    """
    if tl.load(is_sparse) != 0:
        return
    program = tl.program_id(0).to(tl.int64)
    n_blocks, d_blocks = tl.cdiv(rows, BN), tl.cdiv(dim, BD)
    row_index = program % n_blocks * BN + tl.arange(0, BN)
    dim_index = program // n_blocks % d_blocks * BD + tl.arange(0, BD)
    split = program // n_blocks // d_blocks
    in_rows, in_dim = row_index < rows, dim_index < dim
    sums = zero_tile(BN, BD, out.dtype.element_ty)
    tile = load_tile(x, row_index, dim_index, rows, dim, x_row, x_dim, sums)
    x_label = tl.load(x_labels + row_index, mask=in_rows)
    if X_IS_QUERY:
        grad_positive = tl.load(positive + row_index, mask=in_rows)
        grad_negative = tl.load(negative + row_index, mask=in_rows)
    for block in range(split * split_columns, tl.minimum((split + 1) * split_columns, columns), UNROLL):
        for step in tl.static_range(UNROLL):
            column = block + step
            inside = column < columns
            in_pairs = row_index < tl.where(inside, rows, 0)
            same = x_label == tl.load(y_labels + column, mask=inside)
            if X_IS_QUERY:
                byte = tl.load(active + row_index * row_bytes + column // 8, mask=in_pairs, other=0)
                bit = (column % 8).to(tl.int32)
            else:
                byte = tl.load(active + column * row_bytes + row_index // 8, mask=in_pairs, other=0)
                bit = (row_index % 8).to(tl.int32)
                grad_positive = tl.load(positive + column, mask=inside)
                grad_negative = tl.load(negative + column, mask=inside)
            g = _score_gradient(byte, bit, same, grad_positive, grad_negative)
            in_other = dim_index < tl.where(inside, dim, 0)
            other = tl.load(y + column * y_row + dim_index * y_dim, mask=in_other)
            sums = add_signs(sums, tile, other.to(sums.dtype), g)
    to = out + (split * rows + row_index[:, None]) * dim + dim_index[None, :]
    tl.store(to, sums, mask=in_rows[:, None] & in_dim[None, :])


@triton.jit
def hinge_sparse_row_sums_kernel(
    x, y, active, x_labels, y_labels, positive, negative, is_sparse, out,
    rows, columns, dim, row_bytes, split_columns, x_batch, x_row, x_dim, y_batch, y_row, y_dim,
    BD: tl.constexpr, X_IS_QUERY: tl.constexpr,
):  # fmt: skip
    """As hinge_row_sums_kernel, if the pairs are sparse. A program processes the active pairs of one row:

    for WORD columns:
        word = their active bits
        while word != 0: process the pair of the lowest bit, and clear the bit
    """
    if tl.load(is_sparse) == 0:
        return
    program, d_blocks = tl.program_id(0).to(tl.int64), tl.cdiv(dim, BD)
    dim_index = program % d_blocks * BD + tl.arange(0, BD)
    row, split = program // d_blocks % rows, program // d_blocks // rows
    in_dim, word_bits, x_label = dim_index < dim, tl.arange(0, WORD), tl.load(x_labels + row)
    own = tl.load(x + row * x_row + dim_index * x_dim, mask=in_dim, other=0.0).to(out.dtype.element_ty)[None, :]
    sums = tl.zeros_like(own)
    for first in range(split * split_columns, tl.minimum((split + 1) * split_columns, columns), WORD):
        column_index = first + word_bits
        if X_IS_QUERY:
            at, bit = row * row_bytes + column_index // 8, column_index % 8
        else:
            at, bit = column_index * row_bytes + row // 8, row % 8
        byte = tl.load(active + at, mask=column_index < columns, other=0)
        word = tl.sum((byte.to(tl.uint32) >> bit.to(tl.uint32) & 1) << word_bits.to(tl.uint32), 0)
        while word != 0:
            lowest = word & (~word + 1)  # the lowest set bit; as a float, its exponent (biased by 127) is its number
            exponent = lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23
            column = first + exponent - 127
            query_row = row if X_IS_QUERY else column
            same = x_label == tl.load(y_labels + column)
            g = tl.where(same, -tl.load(positive + query_row), tl.load(negative + query_row))
            other = tl.load(y + column * y_row + dim_index * y_dim, mask=in_dim, other=0.0).to(sums.dtype)
            sums = add_signs(sums, own, other, tl.full((1,), g, sums.dtype))
            word ^= lowest
    to = out + (split * rows + row) * dim + dim_index[None, :]
    tl.store(to, sums, mask=in_dim[None, :])


@triton.jit
def hinge_pair_sums_kernel(
    query, reference, active, query_labels, reference_labels, positive, negative, out, rows, columns, dim, row_bytes,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, FOR_WEIGHT: tl.constexpr,
):  # fmt: skip
    """out [N] = sum of g over each row, for the bias; or with FOR_WEIGHT out [D] = sum of g |q - r| over all pairs.

    FOR_WEIGHT recomputes only values of out that are not finite (E2, infinite values).
    """
    program = tl.program_id(0).to(tl.int64)
    first, last = program * BN, tl.minimum(program * BN + BN, rows)
    if FOR_WEIGHT:
        by_rows = tl.load(out + program)
        if by_rows - by_rows == 0:  # finite
            return
        first, last = program * 0, program * 0 + rows
    sums = tl.zeros((BN, BM), out.dtype.element_ty)
    for n in range(first, last, BN):
        row_index = n + tl.arange(0, BN)
        in_rows = row_index < rows
        label = tl.load(query_labels + row_index, mask=in_rows)
        grad_positive = tl.load(positive + row_index, mask=in_rows)[:, None]
        grad_negative = tl.load(negative + row_index, mask=in_rows)[:, None]
        for m in range(0, columns, BM):
            column_index = m + tl.arange(0, BM).to(tl.int64)
            in_columns = column_index < columns
            inside = in_rows[:, None] & in_columns[None, :]
            same = label[:, None] == tl.load(reference_labels + column_index, mask=in_columns)[None, :]
            at = active + row_index[:, None] * row_bytes + column_index[None, :] // 8
            byte = tl.load(at, mask=inside, other=0)
            g = _score_gradient(byte, (column_index % 8).to(tl.int32)[None, :], same, grad_positive, grad_negative)
            if FOR_WEIGHT:
                q = tl.load(query + row_index * query_row + program * query_dim, mask=in_rows).to(sums.dtype)
                r_at = column_index * reference_row + program * reference_dim
                r = tl.load(reference + r_at, mask=in_columns).to(sums.dtype)
                g = tl.where(inside, g * tl.abs(q[:, None] - r[None, :]), 0.0)
            sums += g
    if FOR_WEIGHT:
        tl.store(out + program, tl.sum(tl.sum(sums, 1), 0))
    else:
        row_index = program * BN + tl.arange(0, BN)
        tl.store(out + row_index, tl.sum(sums, 1), mask=row_index < rows)


def hinge(arguments: HingeArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the hinge over each row's positives [N] and negatives [N], and the active bits [N, ceil(M / 8)].

    With num_hard_negatives all pairs are scored twice. The first time, top-k finds each row's last hard negative.
    """
    query, reference, weight, bias, query_labels, reference_labels, exclude_index = arguments[:7]
    margin, num_hard_negatives = arguments[7:]
    rows, columns, acc = query.shape[0], reference.shape[0], ACCUMULATE[query.dtype]
    active = torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8, device=query.device)
    if not (rows and columns):
        empty = torch.zeros(rows, dtype=acc, device=query.device)
        return empty, empty.clone(), active
    pairs = operands(query[None], reference[None], weight[None], bias)
    query_labels, reference_labels = query_labels.contiguous(), reference_labels.contiguous()
    exclude_index = None if exclude_index is None else exclude_index.contiguous()
    limits = indices = None
    if num_hard_negatives is not None:
        k = min(num_hard_negatives, columns)
        limits, indices = topk_of(
            pairs, max(1, k), True, Filter(exclude_index, query_labels, reference_labels, False)
        )
        limits, indices = limits[:, -1].contiguous(), indices[:, -1].contiguous()
        if k == 0:  # a limit that no negative reaches
            limits, indices = torch.full_like(limits, torch.inf), torch.zeros_like(indices)
    split_columns, splits = column_splits(triton.cdiv(rows, MAX_TILE), columns, columns)
    out = torch.empty(splits, 2, rows, dtype=acc, device=query.device)
    launch(
        hinge_kernel, "hinge", ("rows",), splits, acc, **pairs, query_labels=query_labels,
        reference_labels=reference_labels, exclude_index=exclude_index, limits=limits, limit_indices=indices,
        margin=torch.full((1,), margin, dtype=acc, device=query.device), out=out, active=active,
        split_columns=split_columns,
    )  # fmt: skip
    return out[:, 0].sum(0), out[:, 1].sum(0), active


def pairs_are_sparse(active: Tensor, pairs: int) -> Tensor:
    """Whether at most one of SPARSE_PAIRS pairs is active, int32 [1] on the device: the host does not wait."""
    # The usual bit count of each byte: sums of neighboring 1, 2 and 4 bits.
    bits = (active & 0x55) + (active >> 1 & 0x55)
    bits = (bits & 0x33) + (bits >> 2 & 0x33)
    return ((bits & 0xF) + (bits >> 4)).sum().le(pairs // SPARSE_PAIRS).to(torch.int32).reshape(1)


def hinge_backward(arguments: HingeBackwardArguments, needs: Sequence[bool]) -> list[Tensor]:
    """E12 and E2: the needed ones of the gradients [N, D], [M, D], [D], [1]."""
    grad_positive, grad_negative, active, query, reference, weight, query_labels, reference_labels = arguments
    if not (query.numel() and reference.numel()):
        return reference_backend.hinge_backward(arguments, needs)  # zeros
    acc, (rows, dim), columns = ACCUMULATE[query.dtype], query.shape, reference.shape[0]
    pairs = dict(
        active=active.contiguous(), row_bytes=active.shape[1],
        positive=grad_positive.contiguous(), negative=grad_negative.contiguous(),
    )  # fmt: skip
    sides = ((query[None], query_labels.contiguous()), (reference[None], reference_labels.contiguous()))
    is_sparse = pairs_are_sparse(active, rows * columns)

    def sign_sums(side: int) -> Tensor:
        (x, x_labels), (y, y_labels) = sides[side], sides[1 - side]
        count, others = x.shape[1], y.shape[1]
        programs = triton.cdiv(count, 128) * triton.cdiv(dim, 64)
        split_columns, splits = column_splits(programs, others, MAX_SPLITS)
        out = torch.empty(splits, 1, count, dim, dtype=acc, device=x.device)
        for kernel, name, axes, copies in (
            (hinge_row_sums_kernel, "hinge_row_sums", ("rows", "dim"), splits),
            (hinge_sparse_row_sums_kernel, "hinge_sparse_row_sums", ("dim",), splits * count),
        ):
            launch(
                kernel, name, axes, copies, acc, x=x, y=y, out=out, **pairs, is_sparse=is_sparse, x_labels=x_labels,
                y_labels=y_labels, rows=count, columns=others, dim=dim, split_columns=split_columns,
                X_IS_QUERY=side == 0, **strides(x=x, y=y),
            )  # fmt: skip
        return out.sum(0)

    def pair_sums(out: Tensor, axes: tuple[str, ...]) -> None:
        """Launches hinge_pair_sums_kernel for out [N] with axes ("rows",), or for out [D], the weight, with none."""
        (q, q_labels), (r, r_labels) = sides
        launch(
            hinge_pair_sums_kernel, "hinge_pair_sums", axes, 1 if axes else dim, acc, query=q, reference=r, out=out,
            **pairs, query_labels=q_labels, reference_labels=r_labels, rows=rows, columns=columns, dim=dim,
            FOR_WEIGHT=not axes, **strides(query=q, reference=r),
        )  # fmt: skip

    def fix_nonfinite(grad_weight: Tensor) -> None:
        pair_sums(grad_weight, ())

    grads: list = gradients(query[None], reference[None], weight.to(acc), needs[:3], sign_sums, fix_nonfinite)
    if needs[3]:
        bias_sums = torch.empty(rows, dtype=acc, device=query.device)
        pair_sums(bias_sums, ("rows",))
        grads.append(bias_sums.sum().reshape(1))
    shapes = (
        (query.shape, query.dtype),
        (reference.shape, reference.dtype),
        (weight.shape, weight.dtype),
        ((1,), acc),
    )
    return [g.reshape(shape).to(dtype) for g, (shape, dtype) in zip(grads, shapes, strict=False) if g is not None]
