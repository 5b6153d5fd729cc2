"""Scores of half-precision embeddings on matrix units by the max form (E7).

A query row q and a tile of references r give one matrix product per step of BK dimensions:

    max(q, r) [BM, BK]  @  weight parts [BK, 8]  ->  sums [BM, 8]

The columns of the second operand are the three half-precision parts of each weight, padded with zeros to the width
of the matrix instruction. The sum over the columns is the sum over d of w_d max(q_d, r_d). The maximum and the parts
are exact, so the only rounding is that of float32 sums.

E7 cancels if the values share a large offset. A center c is therefore subtracted from each dimension of both sides
(E5), if x - c is exact for all values x: if c / 2 <= x <= 2 c (Sterbenz).

E1 is used instead if values are not finite, might overflow, or have a mean that is large compared with their spread
(MATH.md, "On the matrix units through Triton"). The device decides that: both kernels are launched, and one of them
returns at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETED, launch

#: Half-precision parts of a float32 weight, and columns of the second operand, which the instruction fixes.
WEIGHT_PARTS, PART_COLUMNS = 3, tl.constexpr(8)
#: The largest weight of a head is scaled to between 2**13 and 2**14, so that the parts of small weights stay normal.
WEIGHT_EXPONENT = 14
#: The max form is used if the mean of the centered values is at most this many times their spread.
MAX_MEAN_TO_SPREAD = 2
#: Weighted sizes must be below the largest float32 number divided by this, so that no sum overflows.
MAX_SIZE_DIVISOR = 2**4
#: Rows and dimensions are padded with zeros to a multiple of this, which every tile size divides.
PADDING = 64


@triton.jit
def center_kernel(
    x, center, weight, out, sums, rows, columns, dim, padded_dim, heads, x_batch, x_row, x_dim,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out [B, columns, padded_dim] = x - center, and sums [B, C, columns]: its rows times the weights [C, D]."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(columns, BM)
    row = program % blocks * BM + tl.arange(0, BM)
    head, batch = program // blocks % heads, program // blocks // heads
    total = tl.zeros((BM, BD), tl.float32)
    for d in range(0, padded_dim, BD):
        here = d + tl.arange(0, BD)
        inside = (row < rows)[:, None] & (here < dim)[None, :]
        value = tl.load(x + batch * x_batch + row[:, None] * x_row + here[None, :] * x_dim, mask=inside, other=0.0)
        value = value.to(tl.float32) - tl.load(center + here, mask=here < dim, other=0.0)[None, :]
        value = tl.where(inside, value, 0.0)
        total += value * tl.load(weight + head * dim + here, mask=here < dim, other=0.0)[None, :]
        if head == 0:
            to = out + (batch * columns + row[:, None]) * padded_dim + here[None, :]
            tl.store(to, value.to(out.dtype.element_ty), mask=(row < columns)[:, None] & (here < padded_dim)[None, :])
    tl.store(sums + (batch * heads + head) * columns + row, tl.sum(total, 1), mask=row < columns)


@tl.core.builtin
def _maximum(x, y, _semantic=None):
    """tl.maximum without the conversion of bfloat16 to float32 that Triton up to 3.8 adds."""
    return _semantic.maximum(x, y, tl.PropagateNan.NONE)


@triton.jit
def _add_maxima(sums, q, r, weight_parts, INTERPRETED: tl.constexpr):
    """sums [BM, 8] + max(r [BM, BK], q [BK]) @ weight_parts [BK, 8]."""
    if INTERPRETED:  # the interpreter has no bfloat16 arithmetic; in float32 the result is the same
        maxima = tl.maximum(r.to(tl.float32), q.to(tl.float32)[None, :])
        return tl.dot(maxima, weight_parts.to(tl.float32), sums)
    return tl.dot(_maximum(r, q[None, :]), weight_parts, sums)


@triton.jit
def score_max_kernel(
    query, reference, weight_parts, query_sums, reference_sums, unscale, bias, out, use_max_form,
    rows, columns, dim, heads, padded_rows, padded_columns,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """BN query rows and BM references of out [B, C, N, M], from centered rows and weight_parts [C, D, 8]; D is
    padded.

    `sums` is a tuple with one tile [BM, 8] per query row. So each tile of references is loaded once for BN rows.
    """
    if tl.load(use_max_form) == 0:
        return
    program = tl.program_id(0).to(tl.int64)
    n_blocks, m_blocks = tl.cdiv(rows, BN), tl.cdiv(columns, BM)
    n, m = program % n_blocks * BN, program // n_blocks % m_blocks * BM
    copy = program // n_blocks // m_blocks
    head, batch = copy % heads, copy // heads
    d, column_index = tl.arange(0, BK), m + tl.arange(0, BM)
    query += (batch * padded_rows + n) * dim + d
    reference += (batch * padded_columns + column_index[:, None]) * dim + d[None, :]
    weight_parts += (head * dim + d[:, None]) * PART_COLUMNS + tl.arange(0, PART_COLUMNS)[None, :]
    sums = ()
    for _ in tl.static_range(BN):
        sums = sums + (tl.zeros((BM, PART_COLUMNS), tl.float32),)  # type: ignore  # noqa: RUF005
    for k in range(0, dim, BK):
        r, w = tl.load(reference + k), tl.load(weight_parts + k * PART_COLUMNS)
        updated = ()
        for i in tl.static_range(BN):
            q = tl.load(query + i * dim + k)
            updated = updated + (_add_maxima(sums[i], q, r, w, INTERPRETED),)  # type: ignore  # noqa: RUF005
        sums = updated
    scale, shift = tl.load(unscale + head), 0.0
    if bias is not None:
        shift = tl.load(bias + head)
    reference_sum = tl.load(reference_sums + copy * padded_columns + column_index)
    for i in tl.static_range(BN):
        query_sum = tl.load(query_sums + copy * padded_rows + n + i)
        scores = 2 * (scale * tl.sum(sums[i], 1)) - (query_sum + reference_sum) + shift
        inside = column_index < tl.where(n + i < rows, columns, 0)
        tl.store(out + (copy * rows + n + i) * columns + column_index, scores.to(out.dtype.element_ty), mask=inside)


def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Fills out [B, C, N, M] if the max form is accurate. Returns a flag on the device: whether it has filled out."""
    (batch, rows, dim), columns, heads = query.shape, reference.shape[1], len(weight)
    weight = weight.float().contiguous()
    scale = _power_of_2(WEIGHT_EXPONENT - weight.abs().amax(1).frexp().exponent)
    scaled = weight * scale[:, None]
    center, use_max_form = _choose_center(query, reference, scaled)
    centered_query, query_sums = _subtract_center(query, center, weight)
    centered_reference, reference_sums = _subtract_center(reference, center, weight)
    padded_dim = centered_query.shape[2]
    weight_parts = torch.zeros(heads, padded_dim, PART_COLUMNS.value, dtype=query.dtype, device=query.device)
    for part in range(WEIGHT_PARTS):
        weight_parts[:, :dim, part] = scaled  # rounds to half precision
        scaled = scaled - weight_parts[:, :dim, part].float()  # the remainder, exact
    launch(
        score_max_kernel, "score_max", ("rows", "columns"), batch * heads, torch.float32,
        query=centered_query, query_sums=query_sums, reference=centered_reference, reference_sums=reference_sums,
        weight_parts=weight_parts, unscale=1 / scale, bias=None if bias is None else bias.float().contiguous(),
        out=out, use_max_form=use_max_form,
        rows=rows, columns=columns, dim=padded_dim, heads=heads,
        padded_rows=centered_query.shape[1], padded_columns=centered_reference.shape[1], INTERPRETED=INTERPRETED,
    )  # fmt: skip
    return use_max_form


def _power_of_2(exponent: Tensor) -> Tensor:
    """2 ** exponent in float32, exactly, with exponents clamped so that it and its inverse are normal numbers."""
    return ((exponent + 127).clamp(1, 253) << 23).view(torch.float32)


def _choose_center(query: Tensor, reference: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The center of each dimension, float32 [D] with values of the half type, and whether to use the max form."""
    sides = (query, reference)
    low = torch.minimum(*(x.amin((0, 1)) for x in sides)).float()
    high = torch.maximum(*(x.amax((0, 1)) for x in sides)).float()
    middle = ((low + high) / 2).to(query.dtype).float()
    nearest, farthest = torch.minimum(low.abs(), high.abs()), torch.maximum(low.abs(), high.abs())
    exact = (low * high > 0) & (middle.abs() <= 2 * nearest) & (farthest <= 2 * middle.abs())
    center = torch.where(exact, middle, 0)  # exact: Sterbenz holds for all values of both sides
    means, squares = (
        [f(x) for x in sides]
        for f in (
            lambda x: x.mean((0, 1), dtype=torch.float32),
            lambda x: torch.linalg.vector_norm(x, 2, (0, 1), dtype=torch.float32).square() / x.shape[:2].numel(),
        )
    )  # fmt: skip
    offset = sum((mean - center).abs() for mean in means)
    variance = sum((square - mean.square()).clamp(min=0) for square, mean in zip(squares, means, strict=True))
    spread = (variance + (means[0] - means[1]).square()).sqrt()
    size = weight.abs()
    cancels_little = (size * offset).sum(1) <= MAX_MEAN_TO_SPREAD * (size * spread).sum(1)
    small = (size * farthest).sum(1) < torch.finfo(torch.float32).max / MAX_SIZE_DIVISOR  # False for NaN
    return center, (cancels_little & small).all().int()


def _subtract_center(x: Tensor, center: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x - center [B, R, D] in x's dtype, padded, and its rows times the weights, float32 [B, C, R]."""
    (batch, rows, dim), heads = x.shape, len(weight)
    padded, padded_dim = (triton.cdiv(count, PADDING) * PADDING for count in (rows, dim))
    out = torch.empty(batch, padded, padded_dim, dtype=x.dtype, device=x.device)
    sums = torch.empty(batch, heads, padded, device=x.device)
    launch(
        center_kernel, "center", ("columns",), batch * heads, torch.float32, x=x, center=center, weight=weight,
        out=out, sums=sums, rows=rows, columns=padded, dim=dim, padded_dim=padded_dim, heads=heads,
        x_batch=x.stride(0), x_row=x.stride(1), x_dim=x.stride(2),
    )  # fmt: skip
    return out, sums
