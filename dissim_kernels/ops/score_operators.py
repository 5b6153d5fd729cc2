"""The operators `torch.ops.dissim.score`, `score_backward` and `score_jvp`, without their derivatives.

All take one form of arguments: query [B, N, D], reference [B, M, D], weight [C, D], bias [C] or None; scores are
[B, C, N, M]. The public functions in score.py check, broadcast and reshape, so backends handle this form only.

An operator returns no lists of tensors, because an `autograd.Function` has no vmap rule for them. For a
gradient that is not needed, it returns an empty tensor.
"""

from __future__ import annotations

from torch import Tensor

from ..contract import Problem
from ..dispatch import BACKENDS, resolve
from ..operands import check_score_backward_operands, check_score_jvp_operands, check_score_operands
from .operator import operator, vmap_by_loop


@operator("dissim::score", check_score_operands)
def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return resolve(backend, Problem("score", query.device)).score(query, reference, weight, bias)


@operator("dissim::score_backward", check_score_backward_operands)
def score_backward(
    grad: Tensor,
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    backend: str,
    need_query: bool,
    need_reference: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, reference and weight (E2), an empty tensor for each that is not needed."""
    needs = (need_query, need_reference, need_weight)
    module = resolve(backend, Problem("score", query.device))
    computed = iter(module.score_backward(grad, query, reference, weight, needs))
    grad_query, grad_reference, grad_weight = (next(computed) if needed else grad.new_empty(0) for needed in needs)
    return grad_query, grad_reference, grad_weight


@operator("dissim::score_jvp", check_score_jvp_operands)
def score_jvp(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    query_tangent: Tensor,
    reference_tangent: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor | None,
) -> Tensor:
    """The directional derivative of the score (E13), in the score's dtype, always by the backend `reference`."""
    tangents = [query_tangent, reference_tangent, weight_tangent]
    if bias_tangent is not None:
        tangents.append(bias_tangent)
    return BACKENDS["reference"].score_jvp((query, reference, weight), tangents)


# --- shapes of the results, for FakeTensor, torch.compile and torch.export ------------------------------------


@score.register_fake
def _(query, reference, weight, bias, backend):
    return query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])


@score_backward.register_fake
def _(grad, query, reference, weight, backend, *needs):
    inputs = zip((query, reference, weight), needs, strict=True)
    return tuple(x.new_empty(x.shape) if needed else grad.new_empty(0) for x, needed in inputs)


@score_jvp.register_fake
def _(query, reference, weight, *tangents):
    return query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])


# --- vmap -----------------------------------------------------------------------------------------------------


@score.register_vmap
def _(info, in_dims, query, reference, weight, bias, backend):
    """Rows with a mapped dimension become one larger batch; mapped weights or biases are looped over."""
    if in_dims[2] is not None or in_dims[3] is not None:
        return vmap_by_loop(score)(info, in_dims, query, reference, weight, bias, backend)

    def fold_into_batch(rows, dim):
        rows = rows.movedim(dim, 0) if dim is not None else rows.expand(info.batch_size, *rows.shape)
        return rows.flatten(0, 1)

    scores = score(fold_into_batch(query, in_dims[0]), fold_into_batch(reference, in_dims[1]), weight, bias, backend)
    batch = query.shape[0] if in_dims[0] is None else query.movedim(in_dims[0], 0).shape[1]
    return scores.unflatten(0, (info.batch_size, batch)), 0


score_backward.register_vmap(vmap_by_loop(score_backward))
score_jvp.register_vmap(vmap_by_loop(score_jvp))
