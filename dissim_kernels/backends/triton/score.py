"""Scores of all pairs: the direct form in every type, for half precision beside the max form of max_form.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...contract import ACCUMULATE
from .. import reference as reference_backend
from . import max_form
from .launch import INTERPRETED, launch
from .tile import operands, score_tile


@triton.jit
def score_kernel(
    query, reference, weight, bias, out, taken, rows, columns, dim, heads,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One tile of out [B, C, N, M]. taken: None, or a flag on the device: has another kernel done the work?"""
    if taken is not None:  # noqa: SIM102, one is decided by the compiler
        if tl.load(taken) != 0:
            return
    program = tl.program_id(0).to(tl.int64)
    n_blocks, m_blocks = tl.cdiv(rows, BN), tl.cdiv(columns, BM)
    n, m = program % n_blocks * BN, program // n_blocks % m_blocks * BM
    pair = program // n_blocks // m_blocks
    head, batch = pair % heads, pair // heads
    if bias is not None:
        bias += head
    scores = score_tile(
        query + batch * query_batch, reference + batch * reference_batch, weight + head * dim, bias, n, m,
        rows, columns, dim, query_row, query_dim, reference_row, reference_dim, BN, BM, UNROLL, PACKED,
    )  # fmt: skip
    rows_here, columns_here = n + tl.arange(0, BN), m + tl.arange(0, BM)
    inside = (rows_here[:, None] < rows) & (columns_here[None, :] < columns)
    to = out + pair * rows * columns + rows_here[:, None] * columns + columns_here[None, :]
    tl.store(to, scores.to(out.dtype.element_ty), mask=inside)


def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """E1. Memory beside the result: packed copies of query and reference."""
    if query.shape[1] == reference.shape[1] == 1 or not (query.numel() and reference.numel() and weight.numel()):
        return reference_backend.score(query, reference, weight, bias)  # nothing that pairs could share
    # The interpreter cuts off what bfloat16 has no room for instead of rounding.
    dtype = torch.float32 if INTERPRETED and query.dtype == torch.bfloat16 else query.dtype
    out = query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1], dtype=dtype)
    taken = None if query.dtype == ACCUMULATE[query.dtype] else max_form.score(query, reference, weight, bias, out)
    launch_score(operands(query, reference, weight, bias, packed=taken is None), out, taken)
    return out.to(query.dtype)


def launch_score(given: dict, out: Tensor, taken: Tensor | None = None) -> None:
    """Fills out [B, C, N, M] from `operands`, unless `taken` says that it is filled."""
    copies, wide = out.shape[0] * out.shape[1], given["weight"].dtype
    launch(
        score_kernel, "score", ("rows", "columns"), copies, wide, **given, heads=out.shape[1], out=out, taken=taken
    )
