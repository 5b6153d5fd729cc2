"""The score of all pairs and of row-aligned pairs: the doors, the operators behind them, every derivative.

The operators take canonical shapes: query [B, N, D], reference [B, M, D], weight [C, D], bias [C] or None, and
give [B, C, N, M]. The doors check, broadcast and reshape, so a backend sees one form only.

Eager calls with derivatives go through an `autograd.Function` and compiled or exported ones through the operator's
own `register_autograd`: on such operators torch.func.grad raises and torch.func.jvp returns a silent zero
(pytorch#179652), while torch.compile refuses a Function with a jvp. Both share the formulas below. Within these only
torch.func and forward mode are given a Function: is_grads_batched reaches an operator, one entry at a time, but loses
the graph of a Function. It has no rule for lists of tensors, so operators return tuples, empty where not needed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contract import (
    ACCUMULATE,
    Problem,
    check_paired_inputs,
    check_score_backward_operands,
    check_score_inputs,
    check_score_jvp_operands,
    check_score_operands,
)
from ..dispatch import BACKENDS, check_backend, resolve
from .operator import differentiated, operator, save, saved, transformed


def fused_dissim_score(
    query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | float | None = None, *, backend: str = "auto"
) -> Tensor:
    """Scores of all pairs in the dissimilarity space, larger = "same", without the N x M x D tensor.

    Plain torch (E1)::

        F.linear((query.unsqueeze(-2) - reference.unsqueeze(-3)).abs(), weight, bias)

    Args:
        query: [..., N, D], float16, bfloat16, float32 or float64, any strides.
        reference: [..., M, D], query's dtype; leading dimensions broadcast as in torch.cdist.
        weight: [D], or [C, D] for C heads; the embeddings' dtype, or float32 beside half precision.
        bias: None, a number, a 0-d tensor, or [C]; dtype as weight.
        backend: "auto" or a name of `available_backends()`; a named backend runs or raises its reason.

    Returns:
        [..., N, M] for weight [D], [..., N, M, C] for weight [C, D]; the embeddings' dtype, accumulated in
        float32 (float64 for float64) within the bound E9. NaN and Inf come out as plain torch gives them.

    Gradients for query, reference, weight and bias, each computed only when asked, with sgn(0) = 0 (E2, E3).
    They are differentiable once more; a third derivative is refused. Under autocast the call runs in float32,
    as torch.cdist does. Deterministic: the same input gives the same bits, whatever the number of threads.

    Cost: B*C*N*M*D element steps. Memory on the CPU, with any number of threads: the result and at most 2(N + M)D
    values and 16 MiB in forward, the gradients and at most 3(N + M)D values and 16 MiB in backward, values being
    the embeddings'; of it the thread that calls keeps 2 MiB for its next call. Backward may take more with fewer than
    4 dimensions and more than 300,000 rows on both sides. Leading dimensions that broadcast against each other are
    copied out unless they are absent or 1 on one side.

    Raises:
        TypeError, ValueError: naming the argument, what was expected, what came and what to do.
        RuntimeError: the named backend cannot run this call, with its reason; or there is not memory enough.

    >>> import torch
    >>> query, reference = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    >>> fused_dissim_score(query, reference, torch.tensor([-1.0, -0.5]), 1.0)
    tensor([[ 1., -1.]])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_score_inputs(query, reference, weight, bias)
    lead = query.shape[:-2]
    if lead != reference.shape[:-2]:
        lead = torch.broadcast_shapes(lead, reference.shape[:-2])
    heads, bias = weight if weight.dim() == 2 else weight.unsqueeze(0), head_bias(bias, weight)
    call = _Score.apply if differentiated(query, reference, weight, bias) else score
    query_rows = _batch(query, lead)
    reference_rows = query_rows if reference is query else _batch(reference, lead)  # one tensor is saved once
    scores = call(query_rows, reference_rows, heads, bias, backend)
    if weight.dim() == 1:
        return scores.reshape(*lead, *scores.shape[2:])
    return scores.reshape(*lead, *scores.shape[1:]).movedim(-3, -1)


def paired_dissim_score(
    query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | float | None = None, *, backend: str = "auto"
) -> Tensor:
    """Scores of rows that belong together, larger = "same".

    Plain torch::

        F.linear((query - reference).abs(), weight, bias)

    query [..., D] and reference [..., D] broadcast; weight [D] gives [...], weight [C, D] gives [..., C].
    Dtypes, gradients, errors and backends as in `fused_dissim_score`, of which this is the case N = M = 1.

    >>> import torch
    >>> paired_dissim_score(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0, -0.5]))
    tensor([-2.])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_paired_inputs(query, reference, weight, bias)
    scores = fused_dissim_score(query.unsqueeze(-2), reference.unsqueeze(-2), weight, bias, backend=backend)
    return scores[..., 0, 0] if weight.dim() == 1 else scores[..., 0, 0, :]


#: Saves the questions below; a torch without it is asked them in every call.
_any_autocast_enabled = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def autocast_to_float32(*arguments: Tensor | float | None) -> list:
    """torch.cdist's autocast policy: every floating tensor but float64 becomes float32."""
    if not _any_autocast_enabled():
        return list(arguments)
    return [
        x.float()
        if isinstance(x, Tensor)
        and torch.amp.is_autocast_available(x.device.type)
        and torch.is_autocast_enabled(x.device.type)
        and x.is_floating_point()
        and x.dtype != torch.float64
        else x
        for x in arguments
    ]


def head_bias(bias: Tensor | float | None, weight: Tensor) -> Tensor | None:
    """The bias as [C] or None."""
    if bias is None:
        return None
    if not isinstance(bias, Tensor):
        return weight.new_full((1 if weight.dim() == 1 else weight.shape[0],), bias, dtype=ACCUMULATE[weight.dtype])
    return bias.expand(1 if weight.dim() == 1 else weight.shape[0])


def _batch(rows: Tensor, lead: torch.Size) -> Tensor:
    """[..., R, D] -> [B, R, D] with the leading dimensions broadcast to `lead`."""
    if not lead:
        return rows.unsqueeze(0)
    return rows.expand(*lead, *rows.shape[-2:]).reshape(math.prod(lead), *rows.shape[-2:])


# --- the operators -------------------------------------------------------------------------------------------


def problem_of(operation: str, query: Tensor) -> Problem:
    return Problem(operation, query.device)


@operator("dissim::score", check_score_operands)
def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return resolve(backend, problem_of("score", query)).score(query, reference, weight, bias)


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
    """The gradients of query, reference and weight, an empty tensor for each that is not needed."""
    needs = (need_query, need_reference, need_weight)
    module = resolve(backend, problem_of("score", query))
    computed = iter(module.score_backward(grad, query, reference, weight, needs))
    of_query, of_reference, of_weight = (next(computed) if needed else grad.new_empty(0) for needed in needs)
    return of_query, of_reference, of_weight


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
    """The directional derivative of the score (E13), in the score's dtype."""
    tangents = [query_tangent, reference_tangent, weight_tangent]
    if bias_tangent is not None:
        tangents.append(bias_tangent)
    return BACKENDS["reference"].score_jvp((query, reference, weight), tangents)


@score.register_fake
def _(query, reference, weight, bias, backend):
    return query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])


@score_backward.register_fake
def _(grad, query, reference, weight, backend, *needs):
    rows = zip((query, reference, weight), needs, strict=True)
    return tuple(x.new_empty(x.shape) if needed else grad.new_empty(0) for x, needed in rows)


@score_jvp.register_fake
def _(query, reference, weight, *tangents):
    return query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])


# --- derivatives, shared by the Function (eager, torch.func) and by register_autograd (compile, export) -------


def _save_score(ctx, inputs, output):
    query, reference, weight, bias, ctx.backend = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    if any(ctx.needs_input_grad[:3]):
        save(ctx, query, reference, weight)


def _score_gradients(ctx, grad: Tensor) -> tuple:
    grads: list[Tensor | None] = [None] * 5
    needs = ctx.needs_input_grad[:3]
    if any(needs):
        tensors = grad, *saved(ctx)
        call = _ScoreBackward.apply if transformed() else score_backward
        computed = call(*tensors, ctx.backend, *needs)
        grads[:3] = (x if needed else None for x, needed in zip(computed, needs, strict=True))
    if ctx.needs_input_grad[3]:
        grads[3] = _sum_over_pairs(grad).to(ctx.bias_dtype)
    return tuple(grads)


def _sum_over_pairs(grad: Tensor) -> Tensor:
    """[B, C, N, M] -> wide [C]. Summed twice, because torch cuts a sum of one output by the number of threads."""
    twice = grad.expand(2, *grad.shape)
    return twice.sum(4, dtype=ACCUMULATE[grad.dtype]).sum((1, 3))[0]


score.register_autograd(_score_gradients, setup_context=_save_score)


class _Score(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(score)
    backward = staticmethod(_score_gradients)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save_score(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def jvp(ctx, *tangents):
        primals = ctx.saved_tensors
        return _ScoreJvp.apply(*primals, *_with_zeros(tangents[:3], primals), tangents[3])


def _refuse_reverse_over_jvp(ctx, *grads: Tensor) -> None:
    raise NotImplementedError(
        "fused_dissim_score: a third derivative is not available, nor reverse-mode over forward-mode (grad of jvp). "
        "Use jacrev(jacrev(f)), or autograd twice (torch.autograd.functional.vhp, not hvp)."
    )


score_jvp.register_autograd(_refuse_reverse_over_jvp)


class _ScoreJvp(torch.autograd.Function):
    """The directional derivative; its own is a sum of three of the same kind, so forward mode nests (E13)."""

    generate_vmap_rule = True
    forward = staticmethod(score_jvp)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs[:6])

    backward = staticmethod(_refuse_reverse_over_jvp)

    @staticmethod
    def jvp(ctx, *changes):
        query, reference, weight, along_query, along_reference, along_weight = primals = ctx.saved_tensors
        of_query, of_reference, of_weight, *of_tangents = _with_zeros(changes[:6], primals)
        none = torch.zeros_like(along_weight)
        along_later = _ScoreJvp.apply(query, reference, weight, *of_tangents, changes[6])
        by_weight = _ScoreJvp.apply(query, reference, of_weight, along_query, along_reference, none, None)
        by_rows = _ScoreJvp.apply(query, reference, along_weight, of_query, of_reference, none, None)
        return along_later + by_weight + by_rows


def _with_zeros(tangents, primals) -> list[Tensor]:
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tangents, primals, strict=True)]


def _save_score_backward(ctx, inputs, output):
    ctx.backend, *ctx.needs = inputs[4:]
    save(ctx, *inputs[:4])


def _second_gradients(ctx, *directions: Tensor) -> tuple:
    """The gradients of sum(v * gradient) for directions v (E13)."""
    grad, query, reference, weight = saved(ctx)
    of_query, of_reference, of_weight = (
        direction if needed else torch.zeros_like(x)
        for direction, x, needed in zip(directions, (query, reference, weight), ctx.needs, strict=True)
    )
    need_grad, need_query, need_reference, need_weight, *_ = ctx.needs_input_grad
    second: list[Tensor | None] = [None] * 8
    if need_grad:
        second[0] = score_jvp(query, reference, weight, of_query, of_reference, of_weight, None)
    if need_query or need_reference:
        needs = [need_query, need_reference, False]
        computed = score_backward(grad, query, reference, of_weight, ctx.backend, *needs)
        second[1:3] = (x if needed else None for x, needed in zip(computed[:2], needs, strict=False))
    if need_weight:
        heads = weight.shape[0]  # each head becomes a batch entry with weight 1
        rows = [x.repeat_interleave(heads, 0) for x in (query, reference, of_query, of_reference)]
        ones, flags = torch.ones_like(weight[:1]), (True, True, False)
        signs = score_backward(grad.flatten(0, 1).unsqueeze(1), *rows[:2], ones, ctx.backend, *flags)[:2]
        parts = [
            (v * s).reshape(len(query), heads, *v.shape[1:]).sum((0, 2)) for v, s in zip(rows[2:], signs, strict=True)
        ]
        second[3] = (parts[0] + parts[1]).to(weight.dtype)
    return tuple(second)


score_backward.register_autograd(_second_gradients, setup_context=_save_score_backward)


class _ScoreBackward(torch.autograd.Function):
    """The first derivative, differentiable once."""

    generate_vmap_rule = True
    forward = staticmethod(score_backward)
    backward = staticmethod(_second_gradients)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save_score_backward(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])  # without it vmap fails before it reaches the refusal below

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError(
            "fused_dissim_score: forward-mode over reverse-mode is not available (torch.func.hessian, jvp of grad). "
            "Use jacrev(jacrev(f)), or autograd twice."
        )


# --- vmap ----------------------------------------------------------------------------------------------------


def each_entry(operator):
    """A vmap rule that calls the operator for every entry and stacks the results."""

    def rule(info, in_dims, *args):
        def entry(value, dim, i):
            if isinstance(dim, list | tuple):
                return [entry(v, d, i) for v, d in zip(value, dim, strict=True)]
            return value if dim is None else value.select(dim, i)

        outs = [
            operator(*(entry(a, d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(info.batch_size)
        ]
        if isinstance(outs[0], Tensor):
            return torch.stack(outs), 0
        stacked = [torch.stack(column) for column in zip(*outs, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


@score.register_vmap
def _(info, in_dims, query, reference, weight, bias, backend):
    if in_dims[2] is not None or in_dims[3] is not None:
        return each_entry(score)(info, in_dims, query, reference, weight, bias, backend)

    def fold(rows, dim):  # the mapped dimension joins the batch
        rows = rows.movedim(dim, 0) if dim is not None else rows.expand(info.batch_size, *rows.shape)
        return rows.flatten(0, 1)

    scores = score(fold(query, in_dims[0]), fold(reference, in_dims[1]), weight, bias, backend)
    return scores.unflatten(0, (info.batch_size, -1)), 0


score_backward.register_vmap(each_entry(score_backward))
score_jvp.register_vmap(each_entry(score_jvp))
