"""A tile of scores in registers, the main loop that score, topk and hinge share, and what it reads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE

#: Rows or columns of a tile. Packed rows are padded to a whole number of the largest tile that serves them.
SMALLEST_TILE, LARGEST_TILE = 16, 128
#: With fewer rows than this on one side, packing would cost more than the loads it makes cheap.
FEWEST_TO_PACK = 32


@triton.jit
def zero_tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr, wide: tl.constexpr):
    """Zeros as a product of zeros, for the layout that its result has: each thread holds 4 x 4 blocks, so that one
    number for each row and each column of them is a few 16-byte loads. A plain zero would cost a third more. The
    product itself leaves no instruction. Triton up to 3.7 wants at least 16 terms."""
    left, right = tl.zeros((ROWS, 16), tl.float32), tl.zeros((16, COLUMNS), tl.float32)
    return tl.dot(left, right, input_precision="ieee").to(wide)


@triton.jit
def score_tile(
    query, reference, weight, bias, n, m, rows, columns, dim, query_row, query_dim, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """E1 for rows n.. and m.. of one batch entry and one head: wide [BN, BM], garbage outside [rows, columns].

    Strides count elements. Dimensions are added in their order whatever the tile, so a pair's bits never differ.
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
    wide: tl.constexpr = weight.dtype.element_ty
    if PACKED:
        q, r = tl.load(query), tl.load(reference)
    else:  # rows outside hold anything, and are not stored
        q, r = tl.load(query, mask=in_query).to(wide), tl.load(reference, mask=in_reference).to(wide)
    return tl.fma(tl.abs(q[:, None] - r[None, :]), tl.load(weight), scores)


def operands(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, packed: bool = True) -> dict:
    """What kernels over `score_tile` take to describe [B, N, D], [B, M, D], [C, D], [C], by name.

    packed: copy both sides to the accumulate type with neighbouring rows side by side, where that pays.
    """
    wide, (_, rows, dim), columns = ACCUMULATE[query.dtype], query.shape, reference.shape[1]
    packed = packed and min(rows, columns) >= FEWEST_TO_PACK
    given = dict(rows=rows, columns=columns, dim=dim, PACKED=packed, bias=bias if bias is None else _wide(bias))
    for name, x in (("query", query), ("reference", reference)):
        laid_out = _pack(x, wide) if packed else x
        given |= {name: laid_out}
        given |= {f"{name}_{axis}": s for axis, s in zip(("batch", "row", "dim"), laid_out.stride(), strict=True)}
    return given | {"weight": _wide(weight)}


def _pack(x: Tensor, wide: torch.dtype) -> Tensor:
    batch, rows, dim = x.shape
    tile = max(SMALLEST_TILE, min(LARGEST_TILE, triton.next_power_of_2(rows)))
    packed = torch.zeros(batch, dim, triton.cdiv(rows, tile) * tile, dtype=wide, device=x.device)
    packed[:, :, :rows] = x.mT
    return packed.mT


def _wide(x: Tensor) -> Tensor:
    return x.to(ACCUMULATE[x.dtype]).contiguous()
