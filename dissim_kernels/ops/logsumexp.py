"""The log-sum-exp of each query row of scores: the public function and the operators, with one bit for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..contract import (
    ACCUMULATE,
    AMONG,
    LogSumExp,
    LogSumExpBackward,
    check_among,
    check_choice,
    check_filters,
    check_logsumexp_backward_operands,
    check_logsumexp_operands,
    check_matrix_inputs,
    check_scale,
)
from ..dispatch import check_backend, resolve
from .operator import differentiated, operator, save, saved, transformed
from .score import autocast_to_float32, each_entry, head_bias, problem_of


def fused_dissim_logsumexp(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = None,
    *,
    scale: Tensor | float = 1.0,
    query_labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    among: str = "different",
    exclude_index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The log-sum-exp of each query's scores, without the N x M matrix: [N] in the accumulator dtype.

    Plain torch, with `kept` the pairs that `among` and `exclude_index` keep (E15)::

        scores = fused_dissim_score(query, reference, weight, bias)
        torch.where(kept, scale * scores, -torch.inf).logsumexp(1)

    InfoNCE, SupCon, multi-similarity and prototype losses are a few lines on top of it (dissim_retrieval.losses).

    query [N, D], reference [M, D], weight [D], bias a number or 0-d tensor, dtypes as in `fused_dissim_score`.

    Args:
        scale: a number or 0-d tensor of either sign; with a negative one the smallest scores dominate.
        query_labels, reference_labels: int64 [N] and [M], or neither with among="all".
        among: "different", the references of another label; "same", those of the query's label; "all".
        exclude_index: int64 [N], a reference row that is left out for each query (itself, for one), -1 for none.

    A query without any pair gives -inf and zero gradients.

    Gradients for query, reference, weight, bias and scale. Backward computes the scores of a pair again where the
    pair's share of its row exceeded u / M of the sum so far, with u the unit roundoff; all other pairs of the row
    together hold less than u of its sum (E15). Second derivatives and forward mode raise NotImplementedError.

    Cost: forward that of the score; backward that of the kept pairs. Memory: [N], one bit for each pair, a block of
    scores, and the gradients. Errors as in `fused_dissim_score`, and ValueError for labels that `among` needs.

    >>> import torch
    >>> query, reference, labels = torch.zeros(1, 1), torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 1])
    >>> fused_dissim_logsumexp(query, reference, torch.tensor([-1.0]), query_labels=labels[:1],
    ...                        reference_labels=labels)
    tensor([-0.3069])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_matrix_inputs(query, reference, weight, bias)
    check_choice("among", among, AMONG)
    check_filters(query, reference, exclude_index, query_labels, reference_labels)
    check_among(among, query_labels)
    check_scale(scale, query)
    bias = head_bias(bias, weight)
    acc = ACCUMULATE[query.dtype]
    factor = scale.to(acc).reshape(1) if isinstance(scale, Tensor) else query.new_full((1,), scale, dtype=acc)
    labels = (None, None) if among == "all" else (query_labels, reference_labels)
    run = _LogSumExpFunction.apply if differentiated(query, reference, weight, bias, factor) else logsumexp
    return run(query, reference, weight, bias, factor, *labels, exclude_index, among, backend)[0]


# --- the operators -------------------------------------------------------------------------------------------


@operator("dissim::logsumexp", check_logsumexp_operands)
def logsumexp(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    query_labels: Tensor | None,
    reference_labels: Tensor | None,
    exclude_index: Tensor | None,
    among: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The log-sum-exp [N], the mean score of each row under its softmax [N] (0 without any pair), and the active
    bits uint8 [N, ceil(M / 8)], lowest bit first: 1 where backward needs the pair."""
    given = LogSumExp(query, reference, weight, bias, scale, query_labels, reference_labels, exclude_index, among)
    return resolve(backend, problem_of("logsumexp", query)).logsumexp(given)


@operator("dissim::logsumexp_backward", check_logsumexp_backward_operands)
def logsumexp_backward(
    grad: Tensor,
    value: Tensor,
    active: Tensor,
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, reference and weight [D]; an empty tensor for each that is not needed."""
    given = LogSumExpBackward(grad, value, active, query, reference, weight, bias, scale)
    computed = iter(resolve(backend, problem_of("logsumexp", query)).logsumexp_backward(given, needs))
    grad_query, grad_reference, grad_weight = (next(computed) if needed else grad.new_empty(0) for needed in needs)
    return grad_query, grad_reference, grad_weight


@logsumexp.register_fake
def _(query, reference, weight, bias, scale, query_labels, reference_labels, exclude_index, among, backend):
    rows = query.new_empty(query.shape[0], dtype=ACCUMULATE[query.dtype])
    active = query.new_empty(query.shape[0], (reference.shape[0] + 7) // 8, dtype=torch.uint8)
    return rows, torch.empty_like(rows), active


@logsumexp_backward.register_fake
def _(grad, value, active, query, reference, weight, bias, scale, needs, backend):
    outs = zip((query, reference, weight), needs, strict=True)
    return tuple(x.new_empty(x.shape) if needed else grad.new_empty(0) for x, needed in outs)


def _save(ctx, inputs, output):
    query, reference, weight, bias, scale, *_, ctx.backend = inputs
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # it would make zeros of a bit for each pair
    save(ctx, query, reference, weight, *([bias] if ctx.has_bias else []), scale, *output)


def _gradients(ctx, grad: Tensor | None, *_) -> tuple:
    query, reference, weight, *bias, scale, value, mean_score, active = saved(ctx)
    if grad is None:
        return (None,) * 10
    bias = bias[0] if ctx.has_bias else None
    *needs, needs_bias, needs_scale = ctx.needs_input_grad[:5]
    run = _LogSumExpBackwardFunction.apply if transformed() else logsumexp_backward
    computed = run(grad, value, active, query, reference, weight, bias, scale, needs, ctx.backend)
    grads = [x if needed else None for x, needed in zip(computed, needs, strict=True)]
    grad_bias = None
    if needs_bias:  # a row's softmax adds up to 1, or to 0 without any pair; NaN and infinity stay NaN
        total = torch.where(value.isneginf(), 0, 1 + (value - value))
        grad_bias = (grad * scale * total).sum().reshape(1).to(bias.dtype)
    grad_scale = (grad * mean_score).sum().reshape(1) if needs_scale else None
    return (*grads, grad_bias, grad_scale, *[None] * 5)


logsumexp.register_autograd(_gradients, setup_context=_save)
logsumexp_backward.register_autograd(lambda ctx, *directions: _raise_no_derivative("second derivative"))
logsumexp.register_vmap(each_entry(logsumexp))
logsumexp_backward.register_vmap(each_entry(logsumexp_backward))


class _LogSumExpFunction(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(logsumexp)
    setup_context = staticmethod(_save)
    backward = staticmethod(_gradients)

    @staticmethod
    def jvp(ctx, *tangents):
        _raise_no_derivative("forward-mode derivative")


class _LogSumExpBackwardFunction(torch.autograd.Function):
    """The first derivative, which raises for another one, also under torch.func."""

    generate_vmap_rule = True
    forward = staticmethod(logsumexp_backward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *directions):
        _raise_no_derivative("second derivative")

    @staticmethod
    def jvp(ctx, *tangents):
        _raise_no_derivative("second derivative")


def _raise_no_derivative(derivative: str) -> NoReturn:
    raise NotImplementedError(
        f"fused_dissim_logsumexp: its {derivative} is not implemented. "
        "Use fused_dissim_score and torch.logsumexp, whose derivatives of every order exist."
    )
