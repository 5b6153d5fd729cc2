"""A tile of scores in registers: the main loop that every operation's forward shares, and its operands.

The loop runs over dimensions. For each it loads one value per query row and one per reference and updates all pairs:

    for d in dimensions:
        q[BN], r[BM] = query[n:n + BN, d], reference[m:m + BM, d]
        scores[BN, BM] += weight[d] * |q[:, None] - r[None, :]|

These loads are cheap if the rows of a tile are adjacent in memory. `_pack` therefore transposes both sides and
converts them to the accumulator dtype:

    x [B, rows, D], dimensions adjacent  ->  packed [B, D, padded rows], rows adjacent
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE

#: Limits of the rows or columns of a tile. Packed rows are padded to a multiple of the largest tile used for them.
MIN_TILE, MAX_TILE = 16, 128
#: With fewer rows than this on one side, packing costs more than it saves.
MIN_ROWS_TO_PACK = 32


@triton.jit
def zero_tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr, acc: tl.constexpr):
    """A tile of zeros in the register layout of a matrix product, where each thread holds 4 x 4 blocks.

    With this layout, a thread loads its values of a row or column in a few 16-byte loads. The layout of tl.zeros
    would cost a third more instructions. The product itself compiles to no instruction. Its inner size is 16 because
    Triton up to 3.7 needs at least that.
    """
    left, right = tl.zeros((ROWS, 16), tl.float32), tl.zeros((16, COLUMNS), tl.float32)
    return tl.dot(left, right, input_precision="ieee").to(acc)


@triton.jit
def score_tile(
    query, reference, weight, bias, n, m, rows, columns, dim, query_row, query_dim, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """E1 for query rows n.. and references m.. of one batch entry and one head, [BN, BM] in the accumulator dtype.

    Values outside [rows, columns] are undefined. Strides count elements. Dimensions are always added in their order,
    so a score does not depend on the tile.
    """
    in_query, in_reference = n + tl.arange(0, BN) < rows, m + tl.arange(0, BM) < columns
    query += n * query_row
    reference += m * reference_row
    query_offsets, reference_offsets = tl.arange(0, BN), tl.arange(0, BM)
    if not PACKED:
        query_offsets, reference_offsets = query_offsets.to(tl.int64), reference_offsets.to(tl.int64)
    query_offsets, reference_offsets = query_offsets * query_row, reference_offsets * reference_row
    scores = zero_tile(BN, BM, weight.dtype.element_ty)
    for _ in range(0, dim // UNROLL):
        for _ in tl.static_range(UNROLL):
            scores = _add_dimension(
                scores, query + query_offsets, reference + reference_offsets, weight, in_query, in_reference, PACKED
            )
            query += query_dim
            reference += reference_dim
            weight += 1
    for _ in range(0, dim % UNROLL):
        scores = _add_dimension(
            scores, query + query_offsets, reference + reference_offsets, weight, in_query, in_reference, PACKED
        )
        query += query_dim
        reference += reference_dim
        weight += 1
    if bias is not None:
        scores += tl.load(bias)
    return scores


@triton.jit
def _add_dimension(scores, query, reference, weight, in_query, in_reference, PACKED: tl.constexpr):
    acc: tl.constexpr = weight.dtype.element_ty
    if PACKED:
        q, r = tl.load(query), tl.load(reference)
    else:  # rows outside are undefined; they are not stored
        q, r = tl.load(query, mask=in_query).to(acc), tl.load(reference, mask=in_reference).to(acc)
    return tl.fma(tl.abs(q[:, None] - r[None, :]), tl.load(weight), scores)


def operands(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, packed: bool = True) -> dict:
    """The arguments, by name, of a kernel that calls `score_tile`, for [B, N, D], [B, M, D], [C, D], [C].

    packed: whether both sides may be packed, which is done if there are enough rows.
    """
    acc, (_, rows, dim), columns = ACCUMULATE[query.dtype], query.shape, reference.shape[1]
    packed = packed and min(rows, columns) >= MIN_ROWS_TO_PACK
    arguments: dict = dict(rows=rows, columns=columns, dim=dim, PACKED=packed)
    arguments |= {"weight": _to_acc(weight), "bias": None if bias is None else _to_acc(bias)}
    for name, x in (("query", query), ("reference", reference)):
        source = _pack(x, acc) if packed else x
        arguments |= {name: source}
        arguments |= {f"{name}_{axis}": s for axis, s in zip(("batch", "row", "dim"), source.stride(), strict=True)}
    return arguments


def _pack(x: Tensor, acc: torch.dtype) -> Tensor:
    """A view, in x's axis order, of a copy of x [B, rows, D] with adjacent rows, padded with zeros."""
    batch, rows, dim = x.shape
    tile = max(MIN_TILE, min(MAX_TILE, triton.next_power_of_2(rows)))
    packed = torch.zeros(batch, dim, triton.cdiv(rows, tile) * tile, dtype=acc, device=x.device)
    packed[:, :, :rows] = x.mT
    return packed.mT


def _to_acc(x: Tensor) -> Tensor:
    return x.to(ACCUMULATE[x.dtype]).contiguous()
