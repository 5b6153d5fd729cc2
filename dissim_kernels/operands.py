"""Checks of the arguments of the operators torch.ops.dissim.*.

Exported programs call the operators without the public functions, so the operators check their arguments, too. Each
check has the parameters of its operator, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .contract import (
    ACCUMULATE,
    OPERATOR_REMEDY,
    check_among,
    check_count,
    check_filters,
    check_offsets,
    check_operand,
    check_tensor,
    raise_argument_error,
)


def check_score_operands(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, *_) -> None:
    """query [B, N, D], reference [B, M, D], weight [C, D], bias [C] or None."""
    _check_operands(query, reference, weight, bias, 3)


def check_score_backward_operands(
    grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, backend: str, *needs: bool
) -> None:
    """grad [B, C, N, M] in query's dtype; the others as for the score."""
    _check_operands(query, reference, weight, None, 3)
    sizes = (query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])
    check_operand("grad", grad, (query.dtype,), sizes, query.device)


def check_score_jvp_operands(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    query_tangent: Tensor,
    reference_tangent: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor | None,
) -> None:
    """query, reference, weight as for the score; a tangent of the shape of each; a bias tangent [C] or None."""
    _check_operands(query, reference, weight, None, 3)
    dtypes, heads = _parameters(query), weight.shape[0]
    check_operand("query_tangent", query_tangent, dtypes, tuple(query.shape), query.device)
    check_operand("reference_tangent", reference_tangent, dtypes, tuple(reference.shape), query.device)
    check_operand("weight_tangent", weight_tangent, dtypes, tuple(weight.shape), query.device)
    if bias_tangent is not None:
        check_operand("bias_tangent", bias_tangent, dtypes, (heads,), query.device)


def check_topk_operands(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    largest: bool,
    exclude_index: Tensor | None,
    query_labels: Tensor | None,
    reference_labels: Tensor | None,
    among: str,
    *_,
) -> None:
    """query [N, D], reference [M, D], weight [D], bias [1] or None, k at least 0, filters as in `check_filters`."""
    _check_operands(query, reference, weight, bias, 2)
    check_count("k", k, 0)
    check_filters(query, reference, exclude_index, query_labels, reference_labels)
    check_among(among, query_labels, ("same",))


def check_hinge_operands(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    query_labels: Tensor,
    reference_labels: Tensor,
    exclude_index: Tensor | None,
    margin: float,
    num_hard_negatives: int | None,
    *_,
) -> None:
    """As for top-k, with labels of both sides; num_hard_negatives None or at least 0."""
    _check_operands(query, reference, weight, bias, 2)
    check_filters(query, reference, exclude_index, query_labels, reference_labels)
    if num_hard_negatives is not None:
        check_count("num_hard_negatives", num_hard_negatives, 0)


def check_hinge_backward_operands(
    grad_positive: Tensor,
    grad_negative: Tensor,
    active: Tensor,
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    query_labels: Tensor,
    reference_labels: Tensor,
    needs: Sequence[bool],
    *_,
) -> None:
    """As for hinge; grad_positive and grad_negative [N] in the accumulator dtype, active uint8 [N, ceil(M / 8)]."""
    _check_operands(query, reference, weight, None, 2)
    check_filters(query, reference, None, query_labels, reference_labels)
    rows, acc = query.shape[0], (ACCUMULATE[query.dtype],)
    check_operand("grad_positive", grad_positive, acc, (rows,), query.device)
    check_operand("grad_negative", grad_negative, acc, (rows,), query.device)
    check_operand("active", active, (torch.uint8,), (rows, (reference.shape[0] + 7) // 8), query.device)
    if len(needs) != 4:
        raise_argument_error(
            "needs", "4 flags, for query, reference, weight and bias", len(needs), "Pass a bool for each."
        )


def _check_operands(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, dims: int) -> None:
    """dims 3: with a batch and heads; dims 2: without a batch and with one head."""
    check_tensor("query", query)
    check_operand("query", query, tuple(ACCUMULATE), (None,) * dims, query.device)
    batch, dim, heads = query.shape[: dims - 2], query.shape[-1], (None,) * (dims - 2)
    check_operand("reference", reference, (query.dtype,), (*batch, None, dim), query.device)
    check_operand("weight", weight, _parameters(query), (*heads, dim), query.device)
    if bias is not None:
        check_operand("bias", bias, _parameters(query), (weight.shape[0] if dims == 3 else 1,), query.device)


def check_listed_scores_operands(query, reference, weight, bias, offsets, indices, *_) -> None:
    """As of the top-k; offsets int64 [N + 1], indices int64 [P]."""
    _check_operands(query, reference, weight, bias, 2)
    check_operand("offsets", offsets, (torch.int64,), (query.shape[0] + 1,), query.device)
    check_operand("indices", indices, (torch.int64,), (None,), query.device)


def check_listed_scores_values(query, reference, weight, bias, offsets, indices, *_) -> None:
    """Offsets that ascend from 0 to P, and indices of references."""
    check_offsets("offsets", offsets, len(indices))
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(reference):
        expected = f"rows of reference, 0 to {len(reference) - 1}"
        raise_argument_error("indices", expected, f"{int(indices.min())} to {int(indices.max())}", OPERATOR_REMEDY)


def check_rank_values(query, reference, weight, bias, offsets, indices, *_) -> None:
    """Offsets that ascend from 0 to P. An index may lie outside of the references: in another shard."""
    check_offsets("offsets", offsets, len(indices))


def check_rank_operands(query, reference, weight, bias, offsets, indices, scores, *_) -> None:
    """As of `listed_scores`; scores [P] in the accumulator dtype."""
    check_listed_scores_operands(query, reference, weight, bias, offsets, indices)
    check_operand("scores", scores, (ACCUMULATE[query.dtype],), tuple(indices.shape), query.device)


def check_logsumexp_operands(
    query, reference, weight, bias, scale, query_labels, reference_labels, exclude_index, among, *_
) -> None:
    """As of the top-k; scale [1] in the accumulator dtype, labels of both sides unless among is "all"."""
    _check_operands(query, reference, weight, bias, 2)
    check_filters(query, reference, exclude_index, query_labels, reference_labels)
    check_operand("scale", scale, (ACCUMULATE[query.dtype],), (1,), query.device)
    check_among(among, query_labels, ("different", "same"))


def check_logsumexp_backward_operands(
    grad, value, active, query, reference, weight, bias, scale, needs: Sequence[bool], *_
) -> None:
    """As of the log-sum-exp; grad and value [N] in the accumulator dtype, active uint8 [N, ceil(M / 8)]."""
    _check_operands(query, reference, weight, bias, 2)
    rows, acc = query.shape[0], (ACCUMULATE[query.dtype],)
    check_operand("grad", grad, acc, (rows,), query.device)
    check_operand("value", value, acc, (rows,), query.device)
    check_operand("scale", scale, acc, (1,), query.device)
    check_operand("active", active, (torch.uint8,), (rows, (reference.shape[0] + 7) // 8), query.device)
    if len(needs) != 3:
        raise_argument_error("needs", "3 flags: of query, reference and weight", len(needs), "Pass a bool for each.")


def _parameters(query: Tensor) -> tuple[torch.dtype, ...]:
    return query.dtype, ACCUMULATE[query.dtype]
