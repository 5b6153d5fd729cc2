"""The operators `torch.ops.dissim.hinge` and `hinge_backward`, and their derivatives (E12).

The forward operator stores one bit per pair: whether the pair is active, that is, inside the margin. The backward
operator needs these bits and no scores. As in score_derivatives.py, the derivative is registered with the operator
for compiled programs and wrapped in an `autograd.Function` for eager calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import ACCUMULATE, HingeArguments, HingeBackwardArguments, Problem
from ..dispatch import resolve
from ..operands import check_hinge_backward_operands, check_hinge_operands
from .first_derivative import register_first_derivative
from .operator import operator, save, saved, transformed


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
    """Sums of max(0, margin - y s) over each row's positives [N] and negatives [N], and the active bits.

    The bits are uint8 [N, ceil(M / 8)], lowest bit first: 1 where a pair is kept and inside the margin.
    """
    arguments = HingeArguments(
        query, reference, weight, bias, query_labels, reference_labels, exclude_index, margin, num_hard_negatives
    )
    return resolve(backend, Problem("hinge", query.device)).hinge(arguments)


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
    arguments = HingeBackwardArguments(
        grad_positive, grad_negative, active, query, reference, weight, query_labels, reference_labels
    )
    module = resolve(backend, Problem("hinge", query.device))
    computed = iter(module.hinge_backward(arguments, needs))
    grad_query, grad_reference, grad_weight, grad_bias = (
        next(computed) if needed else grad_positive.new_empty(0) for needed in needs
    )
    return grad_query, grad_reference, grad_weight, grad_bias


# --- shapes of the results, for FakeTensor, torch.compile and torch.export ------------------------------------


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


# --- derivatives ----------------------------------------------------------------------------------------------


def _save_for_gradients(ctx, inputs, output):
    query, reference, weight, bias, query_labels, reference_labels, *_, ctx.backend = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # otherwise torch allocates a zero gradient for the bits
    save(ctx, query, reference, weight, query_labels, reference_labels, output[2])


def _gradients(ctx, *grads: Tensor | None) -> tuple:
    query, reference, weight, query_labels, reference_labels, active = saved(ctx)
    upstream = [query.new_zeros(len(query), dtype=ACCUMULATE[query.dtype]) if g is None else g for g in grads[:2]]
    needs = list(ctx.needs_input_grad[:4])
    run = HingeBackwardFunction.apply if transformed() else hinge_backward
    computed = run(*upstream, active, query, reference, weight, query_labels, reference_labels, needs, ctx.backend)
    *grads_but_bias, grad_bias = (x if needed else None for x, needed in zip(computed, needs, strict=True))
    return *grads_but_bias, None if grad_bias is None else grad_bias.to(ctx.bias_dtype), *[None] * 6


HingeFunction, HingeBackwardFunction = register_first_derivative(
    hinge, hinge_backward, save=_save_for_gradients, gradients=_gradients,
    no_derivative="fused_dissim_hinge_loss: a {} is not available. "
    "Take it through fused_dissim_score and torch.relu, which have one.",
)  # fmt: skip
