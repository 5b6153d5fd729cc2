"""Scores of all pairs by E1 in every dtype. Half precision tries the max form (E7) of max_form.py first."""

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
    query, reference, weight, bias, out, use_max_form, rows, columns, dim, heads,
    query_batch, query_row, query_dim, reference_batch, reference_row, reference_dim,
    BN: tl.constexpr, BM: tl.constexpr, UNROLL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One tile of out [B, C, N, M]. use_max_form: None, or a device flag that score_max_kernel fills out instead."""
    if use_max_form is not None:  # noqa: SIM102, the outer condition is known at compile time
        if tl.load(use_max_form) != 0:
            return
    program = tl.program_id(0).to(tl.int64)
    n_blocks, m_blocks = tl.cdiv(rows, BN), tl.cdiv(columns, BM)
    n, m = program % n_blocks * BN, program // n_blocks % m_blocks * BM
    copy = program // n_blocks // m_blocks
    head, batch = copy % heads, copy // heads
    if bias is not None:
        bias += head
    scores = score_tile(
        query + batch * query_batch, reference + batch * reference_batch, weight + head * dim, bias, n, m,
        rows, columns, dim, query_row, query_dim, reference_row, reference_dim, BN, BM, UNROLL, PACKED,
    )  # fmt: skip
    row_index, column_index = n + tl.arange(0, BN), m + tl.arange(0, BM)
    inside = (row_index[:, None] < rows) & (column_index[None, :] < columns)
    to = out + copy * rows * columns + row_index[:, None] * columns + column_index[None, :]
    tl.store(to, scores.to(out.dtype.element_ty), mask=inside)


def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """E1. Memory in addition to the result: packed copies of query and reference."""
    if query.shape[1] == reference.shape[1] == 1 or not (query.numel() and reference.numel() and weight.numel()):
        return reference_backend.score(query, reference, weight, bias)  # no row is shared by pairs
    # The interpreter truncates to bfloat16 instead of rounding, so it stores float32.
    dtype = torch.float32 if INTERPRETED and query.dtype == torch.bfloat16 else query.dtype
    out = query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1], dtype=dtype)
    use_max_form = (
        None if query.dtype == ACCUMULATE[query.dtype] else max_form.score(query, reference, weight, bias, out)
    )
    launch_score(operands(query, reference, weight, bias, packed=use_max_form is None), out, use_max_form)
    return out.to(query.dtype)


def launch_score(arguments: dict, out: Tensor, use_max_form: Tensor | None = None) -> None:
    """Fills out [B, C, N, M] from the arguments that `operands` returned, unless the flag use_max_form is set."""
    heads, acc = out.shape[1], arguments["weight"].dtype
    launch(
        score_kernel, "score", ("rows", "columns"), out.shape[0] * heads, acc, **arguments,
        heads=heads, out=out, use_max_form=use_max_form,
    )  # fmt: skip
