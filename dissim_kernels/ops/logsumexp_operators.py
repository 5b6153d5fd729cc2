"""The operators of the log-sum-exp (E15) and their derivatives: one bit for each pair is kept for backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import ACCUMULATE, LogSumExpArguments, LogSumExpBackwardArguments, Problem
from ..dispatch import resolve
from ..operands import check_logsumexp_backward_operands, check_logsumexp_operands
from .first_derivative import register_first_derivative
from .operator import operator, save, saved, transformed


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
    filters = (query_labels, reference_labels, exclude_index)
    given = LogSumExpArguments(query, reference, weight, bias, scale, *filters, among)
    return resolve(backend, Problem("logsumexp", query.device)).logsumexp(given)


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
    given = LogSumExpBackwardArguments(grad, value, active, query, reference, weight, bias, scale)
    computed = iter(resolve(backend, Problem("logsumexp", query.device)).logsumexp_backward(given, needs))
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


def _save_for_gradients(ctx, inputs, output):
    query, reference, weight, bias, scale, *_, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # it would make zeros of a bit for each pair
    save(ctx, query, reference, weight, *([] if bias is None else [bias]), scale, *output)


def _gradients(ctx, grad: Tensor | None, *_) -> tuple:
    query, reference, weight, *some_bias, scale, value, mean_score, active = saved(ctx)
    if grad is None:
        return (None,) * 10
    bias = some_bias[0] if some_bias else None
    *needs, needs_bias, needs_scale = ctx.needs_input_grad[:5]
    run = LogSumExpBackwardFunction.apply if transformed() else logsumexp_backward
    computed = run(grad, value, active, query, reference, weight, bias, scale, needs, ctx.backend)
    grads = [x if needed else None for x, needed in zip(computed, needs, strict=True)]
    grad_bias = None
    if needs_bias and bias is not None:
        # A row's softmax adds up to 1, or to 0 without any pair. NaN and infinity stay NaN.
        total = torch.where(value.isneginf(), 0, 1 + (value - value))
        grad_bias = (grad * scale * total).sum().reshape(1).to(bias.dtype)
    grad_scale = (grad * mean_score).sum().reshape(1) if needs_scale else None
    return (*grads, grad_bias, grad_scale, *[None] * 5)


LogSumExpFunction, LogSumExpBackwardFunction = register_first_derivative(
    logsumexp, logsumexp_backward, save=_save_for_gradients, gradients=_gradients,
    no_derivative="fused_dissim_logsumexp: a {} is not available. "
    "Take it through fused_dissim_score and torch.logsumexp, which have one.",
)  # fmt: skip
