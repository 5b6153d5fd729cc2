"""Scores of half-precision embeddings on the matrix units: the max form E7, max(q, r) times the weights.

A maximum of two numbers is exact, so the only roundings are those of float32 sums, provided that

- the weights are exact: each is split in three half-precision parts, in columns of the second operand;
- the two sides of E7 do not cancel: a centre is subtracted from a dimension of both sides first (E5), where that is
  exact, which it is where c / 2 <= x <= 2 c for all its values x (Sterbenz).

Where values are not finite, might overflow, or still have a mean of several times their spread, the direct form runs
instead. That is decided on the device: both kernels are launched, and one of them returns at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETED, launch

#: Parts of a weight, and columns of the second operand: the matrix units want eight.
PARTS, COLUMNS = 3, tl.constexpr(8)
#: Scaled weights are below 2 ** 14 and the largest is not below half of it, so that no part it needs is subnormal.
LARGEST = 14
#: How many times their spread the mean of the centred values may be: so many times the sums are those of E1.
OFFSET = 2
#: Rows and dimensions are padded with zeros to a whole number of any tile.
PADDING = 64


@triton.jit
def centre_kernel(
    x, centre, weight, out, sums, rows, columns, dim, padded_dim, heads, x_batch, x_row, x_dim,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out [B, columns, padded_dim] = x - centre, and sums [B, C, columns] of it times the weights [C, D]."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(columns, BM)
    row = program % blocks * BM + tl.arange(0, BM)
    head, batch = program // blocks % heads, program // blocks // heads
    total = tl.zeros((BM, BD), tl.float32)
    for d in range(0, padded_dim, BD):
        here = d + tl.arange(0, BD)
        inside = (row < rows)[:, None] & (here < dim)[None, :]
        value = tl.load(x + batch * x_batch + row[:, None] * x_row + here[None, :] * x_dim, mask=inside, other=0.0)
        value = value.to(tl.float32) - tl.load(centre + here, mask=here < dim, other=0.0)[None, :]
        value = tl.where(inside, value, 0.0)
        total += value * tl.load(weight + head * dim + here, mask=here < dim, other=0.0)[None, :]
        if head == 0:
            to = out + (batch * columns + row[:, None]) * padded_dim + here[None, :]
            tl.store(to, value.to(out.dtype.element_ty), mask=(row < columns)[:, None] & (here < padded_dim)[None, :])
    tl.store(sums + (batch * heads + head) * columns + row, tl.sum(total, 1), mask=row < columns)


@tl.core.builtin
def _maximum(x, y, _semantic=None):
    """tl.maximum without its conversion of bfloat16 to float32, which Triton makes up to 3.8."""
    return _semantic.maximum(x, y, tl.PropagateNan.NONE)


@triton.jit
def _add_maxima(sums, q, r, parts, INTERPRETED: tl.constexpr):
    if INTERPRETED:  # where bfloat16 has no arithmetic; it is exact in float32
        maxima = tl.maximum(r.to(tl.float32), q.to(tl.float32)[None, :])
        return tl.dot(maxima, parts.to(tl.float32), sums)
    return tl.dot(_maximum(r, q[None, :]), parts, sums)


@triton.jit
def score_max_kernel(
    query, reference, parts, query_sums, reference_sums, unscale, bias, out, taken, rows, columns, dim, heads,
    padded_rows, padded_columns,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """BN query rows against BM references of out [B, C, N, M], from centred rows and parts [C, D, COLUMNS].

    D is padded. Each query row has its own sums, so that a tile of references serves BN rows from registers.
    """
    if tl.load(taken) == 0:
        return
    program = tl.program_id(0).to(tl.int64)
    n_blocks, m_blocks = tl.cdiv(rows, BN), tl.cdiv(columns, BM)
    n, m = program % n_blocks * BN, program // n_blocks % m_blocks * BM
    pair = program // n_blocks // m_blocks
    head, batch = pair % heads, pair // heads
    d, columns_here = tl.arange(0, BK), m + tl.arange(0, BM)
    query += (batch * padded_rows + n) * dim + d
    reference += (batch * padded_columns + columns_here[:, None]) * dim + d[None, :]
    parts += (head * dim + d[:, None]) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    sums = ()
    for _ in tl.static_range(BN):
        sums = sums + (tl.zeros((BM, COLUMNS), tl.float32),)  # type: ignore  # noqa: RUF005
    for k in range(0, dim, BK):
        r, w = tl.load(reference + k), tl.load(parts + k * COLUMNS)
        more = ()
        for i in tl.static_range(BN):
            q = tl.load(query + i * dim + k)
            more = more + (_add_maxima(sums[i], q, r, w, INTERPRETED),)  # type: ignore  # noqa: RUF005
        sums = more
    scale, shift = tl.load(unscale + head), 0.0
    if bias is not None:
        shift = tl.load(bias + head)
    right = tl.load(reference_sums + pair * padded_columns + columns_here)
    for i in tl.static_range(BN):
        left = tl.load(query_sums + pair * padded_rows + n + i)
        scores = 2 * (scale * tl.sum(sums[i], 1)) - (left + right) + shift
        inside = columns_here < tl.where(n + i < rows, columns, 0)
        tl.store(out + (pair * rows + n + i) * columns + columns_here, scores.to(out.dtype.element_ty), mask=inside)


def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Fills out [B, C, N, M] where the max form can; returns a flag on the device: has it?"""
    (batch, rows, dim), columns, heads = query.shape, reference.shape[1], len(weight)
    weight = weight.float().contiguous()
    scale = _power_of_2(LARGEST - weight.abs().amax(1).frexp().exponent)
    scaled = weight * scale[:, None]
    centre, taken = _centre(query, reference, scaled)
    centred = [_centred(x, centre, weight) for x in (query, reference)]
    padded_dim = centred[0][0].shape[2]
    parts = torch.zeros(heads, padded_dim, COLUMNS.value, dtype=query.dtype, device=query.device)
    for part in range(PARTS):
        parts[:, :dim, part] = scaled  # rounds
        scaled = scaled - parts[:, :dim, part].float()
    launch(
        score_max_kernel, "score_max", ("rows", "columns"), batch * heads, torch.float32,
        query=centred[0][0], query_sums=centred[0][1], reference=centred[1][0], reference_sums=centred[1][1],
        parts=parts, unscale=1 / scale, bias=None if bias is None else bias.float().contiguous(),
        out=out, taken=taken,
        rows=rows, columns=columns, dim=padded_dim, heads=heads,
        padded_rows=centred[0][0].shape[1], padded_columns=centred[1][0].shape[1], INTERPRETED=INTERPRETED,
    )  # fmt: skip
    return taken


def _power_of_2(exponent: Tensor) -> Tensor:
    """2 ** exponent in float32, exactly; exponents beyond a normal number and its inverse are cut."""
    return ((exponent + 127).clamp(1, 253) << 23).view(torch.float32)


def _centre(query: Tensor, reference: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The centre of each dimension, float32 [D] with values of the half type, and a flag: may the max form run?"""
    sides = (query, reference)
    low = torch.minimum(*(x.amin((0, 1)) for x in sides)).float()
    high = torch.maximum(*(x.amax((0, 1)) for x in sides)).float()
    middle = ((low + high) / 2).to(query.dtype).float()
    near, far = torch.minimum(low.abs(), high.abs()), torch.maximum(low.abs(), high.abs())
    exact = (low * high > 0) & (middle.abs() <= 2 * near) & (far <= 2 * middle.abs())
    centre = torch.where(exact, middle, 0)
    means, squares = (
        [f(x) for x in sides]
        for f in (
            lambda x: x.mean((0, 1), dtype=torch.float32),
            lambda x: torch.linalg.vector_norm(x, 2, (0, 1), dtype=torch.float32).square() / x.shape[:2].numel(),
        )
    )  # fmt: skip
    offset = sum((mean - centre).abs() for mean in means)
    variance = sum((square - mean.square()).clamp(min=0) for square, mean in zip(squares, means, strict=True))
    spread = (variance + (means[0] - means[1]).square()).sqrt()
    size = weight.abs()
    steady = (size * offset).sum(1) <= OFFSET * (size * spread).sum(1)
    small = (size * far).sum(1) < torch.finfo(torch.float32).max / 2**4  # False at NaN
    return centre, (steady & small).all().int()


def _centred(x: Tensor, centre: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x - centre [B, R, D] in x's type, padded, and its rows times the weights, float32 [B, C, R]."""
    (batch, rows, dim), heads = x.shape, len(weight)
    padded, padded_dim = (triton.cdiv(count, PADDING) * PADDING for count in (rows, dim))
    out = torch.empty(batch, padded, padded_dim, dtype=x.dtype, device=x.device)
    sums = torch.empty(batch, heads, padded, device=x.device)
    launch(
        centre_kernel, "centre", ("columns",), batch * heads, torch.float32, x=x, centre=centre, weight=weight,
        out=out, sums=sums, rows=rows, columns=padded, dim=dim, padded_dim=padded_dim, heads=heads,
        x_batch=x.stride(0), x_row=x.stride(1), x_dim=x.stride(2),
    )  # fmt: skip
    return out, sums
