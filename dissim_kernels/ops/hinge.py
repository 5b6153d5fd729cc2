"""The hinge loss over pairs of labelled rows: the door, the operators, the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import (
    ACCUMULATE,
    BALANCES,
    REDUCTIONS,
    Hinge,
    HingeBackward,
    check_choice,
    check_count,
    check_filters,
    check_hinge_backward_operands,
    check_hinge_operands,
    check_labels,
    check_matrix_inputs,
    check_number,
)
from ..dispatch import check_backend, resolve
from .operator import differentiated, operator, save, saved, transformed
from .score import autocast_to_float32, each_entry, head_bias, problem_of


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
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Hinge loss of the pair scores, y = +1 for equal labels and -1 otherwise, without an N x M float tensor.

    Plain torch, for balance="pairs", num_hard_negatives=None, exclude_index=None::

        s = fused_dissim_score(query, reference, weight, bias)
        y = torch.where(query_labels[:, None] == reference_labels[None], 1.0, -1.0)
        (margin - y * s).clamp(min=0).mean()

    query [N, D], reference [M, D], weight [D], bias None, a number or 0-d; dtypes as in `fused_dissim_score`;
    labels int64 [N] and [M].

    Args:
        margin: the score beyond which a pair costs nothing; at the margin itself the gradient is 0 (E12).
        balance: "pairs", each pair weighs the same; "classes", positives and negatives weigh one half each
            (the whole weight goes to the one that exists if the other is empty).
        num_hard_negatives: keep only this many highest-scoring negatives of each query (ties by lower index; all if
            there are fewer); every positive is kept. None keeps all.
        exclude_index: int64 [N], a reference row each query is not paired with, -1 for none.
        reduction: "mean", weights sum to one (0 where there is no pair); "sum", mean times the number of pairs kept;
            "none", a value for each query row [N], which sum to the mean times N.

    Returns:
        0-d, or [N] for reduction "none", in the accumulator dtype (float32 for half precision). Any upstream
        gradient; frozen inputs cost nothing. Double backward and jvp raise NotImplementedError.

    Cost: forward as the score; backward a step for each active pair and dimension where these are few (one in 4, on
    GPUs one in 16), else as score's. Memory on the CPU: one bit a pair and at most 2(N + M)D values and 16 MiB in
    forward, the gradients and at most 3(N + M)D values and 16 MiB in backward; on GPUs one bit a pair and a block of
    scores, in backward some float32 copies of both sides' rows and sums. Errors as in `fused_dissim_score`.

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
    bias = head_bias(bias, weight)
    call = _Hinge.apply if differentiated(query, reference, weight, bias) else hinge
    positive, negative, _ = call(
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
    of_positive, of_negative, pairs = _pair_weights(
        query_labels, reference_labels, exclude_index, num_hard_negatives, balance, positive.dtype
    )
    rows = of_positive * positive + of_negative * negative
    if reduction == "none":
        return rows * query.shape[0]
    return rows.sum() * pairs if reduction == "sum" else rows.sum()


def _pair_weights(query_labels, reference_labels, exclude_index, num_hard_negatives, balance, dtype):
    """What a positive and a negative pair weigh in the mean, and the number of pairs kept: 0-d tensors."""
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
    of_positive, of_negative = positives.sum().to(dtype), negatives.sum().to(dtype)
    pairs = of_positive + of_negative
    if balance == "pairs":
        weight = 1 / pairs.clamp(min=1)
        return weight, weight, pairs
    classes = (of_positive > 0).to(dtype) + (of_negative > 0).to(dtype)
    return (*(1 / (classes * count).clamp(min=1) for count in (of_positive, of_negative)), pairs)


# --- the operators: sums of the two classes apart, so that balance and reduction stay plain torch ---------------


@operator("dissim::hinge", check_hinge_operands)
def hinge(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    query_labels: Tensor,
    reference_labels: Tensor,
    exclude_index: Tensor | None,
    margin: float,
    num_hard_negatives: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of max(0, margin - y s) over each row's positives and negatives [N], [N], and the active bits.

    The bits are uint8 [N, ceil(M / 8)], lowest bit first: 1 where a kept pair is inside the margin.
    """
    given = Hinge(
        query, reference, weight, bias, query_labels, reference_labels, exclude_index, margin, num_hard_negatives
    )
    return resolve(backend, problem_of("hinge", query)).hinge(given)


@operator("dissim::hinge_backward", check_hinge_backward_operands)
def hinge_backward(
    grad_positive: Tensor,
    grad_negative: Tensor,
    active: Tensor,
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    query_labels: Tensor,
    reference_labels: Tensor,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, reference, weight [D] and bias [1], from the active bits (E12).

    An empty tensor for each that is not needed.
    """
    tensors = (grad_positive, grad_negative, active, query, reference, weight, query_labels, reference_labels)
    computed = iter(resolve(backend, problem_of("hinge", query)).hinge_backward(HingeBackward(*tensors), needs))
    of_query, of_reference, of_weight, of_bias = (
        next(computed) if needed else grad_positive.new_empty(0) for needed in needs
    )
    return of_query, of_reference, of_weight, of_bias


@hinge.register_fake
def _(
    query, reference, weight, bias, query_labels, reference_labels, exclude_index, margin, num_hard_negatives, backend
):
    rows = query.new_empty(query.shape[0], dtype=ACCUMULATE[query.dtype])
    active = query.new_empty(query.shape[0], (reference.shape[0] + 7) // 8, dtype=torch.uint8)
    return rows, torch.empty_like(rows), active


@hinge_backward.register_fake
def _(grad_positive, grad_negative, active, query, reference, weight, query_labels, reference_labels, needs, backend):
    outs = (query, reference, weight, weight.new_empty(1, dtype=grad_positive.dtype))
    return tuple(
        x.new_empty(x.shape) if needed else grad_positive.new_empty(0) for x, needed in zip(outs, needs, strict=True)
    )


def _save_hinge(ctx, inputs, output):
    query, reference, weight, bias, query_labels, reference_labels, *_, ctx.backend = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # it would make zeros of a bit a pair
    save(ctx, query, reference, weight, query_labels, reference_labels, output[2])


def _hinge_gradients(ctx, *grads: Tensor | None) -> tuple:
    query, reference, weight, query_labels, reference_labels, active = saved(ctx)
    upstream = [query.new_zeros(len(query), dtype=ACCUMULATE[query.dtype]) if g is None else g for g in grads[:2]]
    needs = list(ctx.needs_input_grad[:4])
    call = _HingeBackward.apply if transformed() else hinge_backward
    computed = call(*upstream, active, query, reference, weight, query_labels, reference_labels, needs, ctx.backend)
    *found, of_bias = (x if needed else None for x, needed in zip(computed, needs, strict=True))
    return *found, None if of_bias is None else of_bias.to(ctx.bias_dtype), *[None] * 6


hinge.register_autograd(_hinge_gradients, setup_context=_save_hinge)
hinge_backward.register_autograd(lambda ctx, *directions: _raise_no_derivative("second derivative"))
hinge.register_vmap(each_entry(hinge))
hinge_backward.register_vmap(each_entry(hinge_backward))


class _Hinge(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(hinge)
    setup_context = staticmethod(_save_hinge)
    backward = staticmethod(_hinge_gradients)

    @staticmethod
    def jvp(ctx, *tangents):
        _raise_no_derivative("forward-mode derivative")


class _HingeBackward(torch.autograd.Function):
    """The first derivative, which has none: a Function, so that torch.func reaches it and the refusal is in words."""

    generate_vmap_rule = True
    forward = staticmethod(hinge_backward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *directions):
        _raise_no_derivative("second derivative")

    @staticmethod
    def jvp(ctx, *tangents):
        _raise_no_derivative("second derivative")


def _raise_no_derivative(derivative: str) -> None:
    raise NotImplementedError(
        f"fused_dissim_hinge_loss: a {derivative} is not available. "
        "Take it through fused_dissim_score and torch.relu, which have one."
    )
