"""The hinge loss over pairs of labeled rows (E12): the public function.

The operators return the sums over positives and over negatives separately, so balance and reduction are plain torch
and autograd differentiates them. Operators and derivatives are in hinge_operators.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import (
    BALANCES,
    REDUCTIONS,
    check_choice,
    check_count,
    check_filters,
    check_labels,
    check_matrix_inputs,
    check_number,
    check_pair_counts,
)
from ..dispatch import check_backend
from .arguments import autocast_to_float32, head_bias
from .hinge_operators import HingeFunction, hinge
from .operator import call


def fused_dissim_hinge_loss(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None,
    query_labels: Tensor,
    reference_labels: Tensor,
    *,
    margin: float = 1.0,
    balance: str = "pairs",
    num_hard_negatives: int | None = None,
    exclude_index: Tensor | None = None,
    pair_counts: tuple[Tensor | float, Tensor | float] | Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Hinge loss over all pairs of labeled rows, without an N x M float tensor.

    Plain torch, for balance="pairs", num_hard_negatives=None, exclude_index=None::

        s = fused_dissim_score(query, reference, weight, bias)
        y = torch.where(query_labels[:, None] == reference_labels[None], 1.0, -1.0)
        (margin - y * s).clamp(min=0).mean()

    query [N, D], reference [M, D], weight [D], bias None, a number or 0-d; dtypes as in `fused_dissim_score`;
    labels int64 [N] and [M]. A positive pair has equal labels (y = 1), a negative pair different ones (y = -1).

    Args:
        margin: a pair with y * s >= margin has loss and gradient 0 (E12).
        balance: "pairs" gives each pair the same weight; "classes" gives one half of the weight to the positives and
            one half to the negatives (all of it to one class if there is no pair of the other).
        num_hard_negatives: keep only this many highest-scoring negatives of each query (ties by lower index; all if
            there are fewer). Every positive is kept. None keeps all negatives.
        exclude_index: int64 [N], for each query a reference row that it is not paired with, -1 for none.
        pair_counts: the numbers of positive and of negative pairs from which the weights follow, numbers or 0-d
            tensors, or one tensor [2]. None counts the pairs kept here. If the queries are a part of a batch (one
            process of several), pass the counts of the whole batch: the means of the parts then sum to the mean of
            the whole.
        reduction: "mean": the weights sum to one (the loss is 0 if there is no pair). "sum": the mean times the
            number of pairs kept. "none": one value per query row [N]; they sum to the mean times N.

    Returns:
        0-d, or [N] for reduction "none", in the accumulator dtype (float32 for half precision). Only the gradients
        that are required are computed. Double backward and jvp raise NotImplementedError.

    Cost: forward as `fused_dissim_score`. Backward: one term per active pair and dimension if at most one pair in 4
    is active (one in 16 on GPUs), else as the score's backward. Memory on the CPU: forward needs one bit per pair and
    at most 2(N + M)D values and 16 MiB; backward needs the gradients and at most 3(N + M)D values and 16 MiB. On
    GPUs: one bit per pair and a block of scores; in backward some float32 copies of the rows of both sides and of
    sums. Errors as in `fused_dissim_score`.

    >>> import torch
    >>> x, labels = torch.tensor([[0.0], [0.5], [4.0]]), torch.tensor([0, 0, 1])
    >>> fused_dissim_hinge_loss(x, x, torch.tensor([-1.0]), 2.0, labels, labels, exclude_index=torch.arange(3))
    tensor(0.)
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_matrix_inputs(query, reference, weight, bias)
    check_labels("query_labels", query_labels, query.shape[0], query.device)
    check_labels("reference_labels", reference_labels, reference.shape[0], query.device)
    check_filters(query, reference, exclude_index, None, None)
    check_number("margin", margin)
    check_choice("balance", balance, BALANCES)
    check_choice("reduction", reduction, REDUCTIONS)
    if num_hard_negatives is not None:
        check_count("num_hard_negatives", num_hard_negatives, 0)
    check_pair_counts(pair_counts)
    bias = head_bias(bias, weight)
    positive, negative, _ = call(
        HingeFunction,
        hinge,
        query,
        reference,
        weight,
        bias,
        query_labels,
        reference_labels,
        exclude_index,
        float(margin),
        num_hard_negatives,
        backend,
    )
    if pair_counts is None:
        pair_counts = _count_pairs(query_labels, reference_labels, exclude_index, num_hard_negatives)
    num_positive, num_negative = (
        torch.as_tensor(count, dtype=positive.dtype, device=positive.device) for count in pair_counts
    )
    weight_positive, weight_negative = _pair_weights(num_positive, num_negative, balance)
    rows = weight_positive * positive + weight_negative * negative
    if reduction == "none":
        return rows * query.shape[0]
    return rows.sum() * (num_positive + num_negative) if reduction == "sum" else rows.sum()


def _count_pairs(query_labels, reference_labels, exclude_index, num_hard_negatives) -> tuple[Tensor, Tensor]:
    """The numbers of positive and of negative pairs that are kept: 0-d tensors."""
    ordered = reference_labels.sort().values
    positives = torch.searchsorted(ordered, query_labels, right=True) - torch.searchsorted(ordered, query_labels)
    negatives = reference_labels.shape[0] - positives
    if exclude_index is not None and reference_labels.shape[0]:
        excluded = (exclude_index >= 0) & (exclude_index < reference_labels.shape[0])
        same = reference_labels[exclude_index.clamp(0, reference_labels.shape[0] - 1)] == query_labels
        positives = positives - (excluded & same).long()
        negatives = negatives - (excluded & ~same).long()
    if num_hard_negatives is not None:
        negatives = negatives.clamp(max=num_hard_negatives)
    return positives.sum(), negatives.sum()


def _pair_weights(num_positive: Tensor, num_negative: Tensor, balance: str) -> tuple[Tensor, Tensor]:
    """The weight of a positive and of a negative pair in the mean: 0-d tensors."""
    if balance == "pairs":
        weight = 1 / (num_positive + num_negative).clamp(min=1)
        return weight, weight
    classes = (num_positive > 0).to(num_positive) + (num_negative > 0).to(num_positive)
    return 1 / (classes * num_positive).clamp(min=1), 1 / (classes * num_negative).clamp(min=1)
