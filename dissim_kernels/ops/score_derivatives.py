"""Derivatives of the score: gradients (E2), directional derivatives and second derivatives (E13).

Each formula is registered twice:

- `register_autograd` of the operator is used by torch.compile and torch.export, which do not accept an
  `autograd.Function` with a jvp.
- An `autograd.Function` is used by eager calls. With an operator alone, torch.func.grad raises and torch.func.jvp
  returns zeros without an error (pytorch#179652). Compiled programs with such a derivative break their graph at it.

Inside a backward pass, the next derivative uses a Function only under torch.func or forward mode (`transformed`);
`_second_gradients` only in forward mode. Otherwise it uses the operator: for is_grads_batched, torch loops over an
operator but loses the graph of a Function.

    Function        computes              backward              jvp
    ScoreFunction   score                 ScoreBackward (E2)    ScoreJvp (E13)
    ScoreBackward   gradients (E2)        E13, reverse          raises
    ScoreJvp        directional, E13      raises                E13, forward: three ScoreJvp
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ..contract import ACCUMULATE
from .operator import in_forward_mode, save, saved, transformed
from .score_operators import score, score_backward, score_jvp

# --- first derivatives ----------------------------------------------------------------------------------------


def _save_for_gradients(ctx, inputs, output):
    query, reference, weight, bias, ctx.backend = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    if any(ctx.needs_input_grad[:3]):
        save(ctx, query, reference, weight)


def _gradients(ctx, grad: Tensor) -> tuple:
    """The gradients of query, reference, weight and bias (E2), None for the backend."""
    grads: list[Tensor | None] = [None] * 5
    needs = ctx.needs_input_grad[:3]
    if any(needs):
        inputs = grad, *saved(ctx)
        run = ScoreBackward.apply if transformed() else score_backward
        computed = run(*inputs, ctx.backend, *needs)
        grads[:3] = (x if needed else None for x, needed in zip(computed, needs, strict=True))
    if ctx.needs_input_grad[3]:
        grads[3] = _sum_over_pairs(grad).to(ctx.bias_dtype)
    return tuple(grads)


def _sum_over_pairs(grad: Tensor) -> Tensor:
    """The sum of [B, C, N, M] over all but the heads, [C] in the accumulator dtype, the same for any thread count.

    torch splits a sum with a single result by the number of threads, which changes its rounding. The tensor is
    therefore expanded to two copies, so that the sum has two results.
    """
    two_copies = grad.expand(2, *grad.shape)
    return two_copies.sum(4, dtype=ACCUMULATE[grad.dtype]).sum((1, 3))[0]


score.register_autograd(_gradients, setup_context=_save_for_gradients)


class ScoreFunction(torch.autograd.Function):
    """The score as an eager call that may be differentiated runs it."""

    generate_vmap_rule = True
    forward = staticmethod(score)
    backward = staticmethod(_gradients)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save_for_gradients(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def jvp(ctx, *tangents):
        primals = ctx.saved_tensors
        return ScoreJvp.apply(*primals, *_zeros_for_none(tangents[:3], primals), tangents[3])


# --- directional derivatives ----------------------------------------------------------------------------------


def _raise_no_reverse_over_forward(ctx, *grads: Tensor) -> NoReturn:
    raise NotImplementedError(
        "fused_dissim_score: a third derivative is not available, nor reverse-mode over forward-mode (grad of jvp). "
        "Use jacrev(jacrev(f)), or autograd twice (torch.autograd.functional.vhp, not hvp)."
    )


score_jvp.register_autograd(_raise_no_reverse_over_forward)


class ScoreJvp(torch.autograd.Function):
    """The directional derivative of the score (E13).

    Its own directional derivative is the sum of three of the same kind, so forward mode can be nested.
    """

    generate_vmap_rule = True
    forward = staticmethod(score_jvp)
    backward = staticmethod(_raise_no_reverse_over_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs[:6])

    @staticmethod
    def jvp(ctx, *tangents):
        """E13, forward over forward. `dot_x` is the tangent of input x; the inputs include a first direction."""
        query, reference, weight, query_direction, reference_direction, weight_direction = primals = ctx.saved_tensors
        dot_query, dot_reference, dot_weight, *dot_directions = _zeros_for_none(tangents[:6], primals)
        no_weight = torch.zeros_like(weight_direction)
        along_changed_direction = ScoreJvp.apply(query, reference, weight, *dot_directions, tangents[6])
        with_changed_weight = ScoreJvp.apply(
            query, reference, dot_weight, query_direction, reference_direction, no_weight, None
        )
        along_changed_rows = ScoreJvp.apply(
            query, reference, weight_direction, dot_query, dot_reference, no_weight, None
        )
        return along_changed_direction + with_changed_weight + along_changed_rows


def _zeros_for_none(tangents, primals) -> list[Tensor]:
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tangents, primals, strict=True)]


# --- second derivatives: reverse over reverse -----------------------------------------------------------------


def _save_for_second_gradients(ctx, inputs, output):
    ctx.backend, *ctx.needs = inputs[4:]
    save(ctx, *inputs[:4])


def _second_gradients(ctx, *directions: Tensor) -> tuple:
    """The gradients of phi = sum(direction * gradient) with respect to grad, query, reference and weight (E13)."""
    grad, query, reference, weight = saved(ctx)
    direction_query, direction_reference, direction_weight = (
        direction if needed else torch.zeros_like(x)
        for direction, x, needed in zip(directions, (query, reference, weight), ctx.needs, strict=True)
    )
    need_grad, need_query, need_reference, need_weight, *_ = ctx.needs_input_grad
    second: list[Tensor | None] = [None] * 8
    run_jvp, run_backward = (
        (ScoreJvp.apply, ScoreBackward.apply) if in_forward_mode() else (score_jvp, score_backward)
    )
    if need_grad:
        second[0] = run_jvp(query, reference, weight, direction_query, direction_reference, direction_weight, None)
    if need_query or need_reference:
        needs = [need_query, need_reference, False]
        computed = run_backward(grad, query, reference, direction_weight, ctx.backend, *needs)
        second[1:3] = (x if needed else None for x, needed in zip(computed[:2], needs, strict=False))
    if need_weight:
        second[3] = _second_grad_weight(
            grad, query, reference, weight, direction_query, direction_reference, ctx.backend
        )
    return tuple(second)


def _second_grad_weight(
    grad: Tensor,
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    direction_query: Tensor,
    direction_reference: Tensor,
    backend: str,
) -> Tensor:
    """sum_n v^q A - sum_m v^r B for each head [C, D] (E13). A and -B are E2's gradients for weight 1."""
    heads = weight.shape[0]
    # Heads become batch entries, so that one call with one weight gives the sign sums of each of them.
    rows = [x.repeat_interleave(heads, 0) for x in (query, reference, direction_query, direction_reference)]
    grad_per_head = grad.flatten(0, 1).unsqueeze(1)
    needs = (True, True, False)
    run = ScoreBackward.apply if in_forward_mode() else score_backward
    sign_sums = run(grad_per_head, *rows[:2], torch.ones_like(weight[:1]), backend, *needs)[:2]
    query_sum, reference_sum = (
        (direction * sums).reshape(len(query), heads, *direction.shape[1:]).sum((0, 2))
        for direction, sums in zip(rows[2:], sign_sums, strict=True)
    )
    return (query_sum + reference_sum).to(weight.dtype)


score_backward.register_autograd(_second_gradients, setup_context=_save_for_second_gradients)


class ScoreBackward(torch.autograd.Function):
    """The gradients of the score, which autograd can differentiate once more."""

    generate_vmap_rule = True
    forward = staticmethod(score_backward)
    backward = staticmethod(_second_gradients)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save_for_second_gradients(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])  # without it vmap fails before it calls jvp, which raises the clear error

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError(
            "fused_dissim_score: forward-mode over reverse-mode is not available (torch.func.hessian, jvp of grad). "
            "Use jacrev(jacrev(f)), or autograd twice."
        )
