"""The score of all pairs and of row-aligned pairs: the doors, the operators behind them, every derivative.

The operators take canonical shapes: query [B, N, D], reference [B, M, D], weight [C, D], bias [C] or None, and
give [B, C, N, M]. The doors check, broadcast and reshape, so a backend sees one form only.

Eager calls with derivatives go through an `autograd.Function` and compiled or exported ones through the operator's
own `register_autograd`: on such operators torch.func.grad raises and torch.func.jvp returns a silent zero
(pytorch#179652), while torch.compile refuses a Function with a jvp. Both share the formulas below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import ACCUMULATE, Problem, check_paired_inputs, check_score_inputs
from ..dispatch import BACKENDS, check_backend, resolve
from .operator import differentiated, operator


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
    the embeddings'; of it the thread that calls keeps 2 MiB for its next call. Leading dimensions that broadcast
    against each other are copied out unless they are absent or 1 on one side.

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
    scores = call(_batch(query, lead), _batch(reference, lead), heads, bias, backend)
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


def autocast_to_float32(*arguments: Tensor | float | None) -> list:
    """torch.cdist's autocast policy: every floating tensor but float64 becomes float32."""
    if not torch._C._is_any_autocast_enabled():
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
    return Problem(operation, query.device.type, query.dtype)


@operator("dissim::score")
def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return resolve(backend, problem_of("score", query)).score(query, reference, weight, bias)


@operator("dissim::score_backward")
def score_backward(
    grad: Tensor,
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    backend: str,
    need_query: bool,
    need_reference: bool,
    need_weight: bool,
) -> list[Tensor]:
    """Those needed of the gradients of query, reference and weight."""
    module = resolve(backend, problem_of("score", query))
    return module.score_backward(grad, query, reference, weight, (need_query, need_reference, need_weight))


@operator("dissim::score_jvp")
def score_jvp(primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    return BACKENDS["reference"].score_jvp(primals, tangents)


@score.register_fake
def _(query, reference, weight, bias, backend):
    return query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])


@score_backward.register_fake
def _(grad, query, reference, weight, backend, *needs):
    return [t.new_empty(t.shape) for t, needed in zip((query, reference, weight), needs, strict=True) if needed]


@score_jvp.register_fake
def _(primals, tangents):
    query, reference, weight = primals[:3]
    return query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])


# --- derivatives, shared by the Function (eager, torch.func) and by register_autograd (compile, export) -------


def _save_score(ctx, inputs, output):
    query, reference, weight, bias, ctx.backend = inputs
    ctx.save_for_backward(query, reference, weight, bias)


def _score_gradients(ctx, grad: Tensor, backward) -> tuple:
    query, reference, weight, bias = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    computed = iter(backward(grad, query, reference, weight, ctx.backend, *needs) if any(needs) else ())
    of_bias = _sum_over_pairs(grad).to(bias.dtype) if ctx.needs_input_grad[3] else None
    return *(next(computed) if needed else None for needed in needs), of_bias, None


def _sum_over_pairs(grad: Tensor) -> Tensor:
    """[B, C, N, M] -> wide [C]. Summed twice, because torch cuts a sum of one output by the number of threads."""
    twice = grad.expand(2, *grad.shape)
    return twice.sum(4, dtype=ACCUMULATE[grad.dtype]).sum((1, 3))[0]


score.register_autograd(lambda ctx, grad: _score_gradients(ctx, grad, score_backward), setup_context=_save_score)


class _Score(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(score)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save_score(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx, grad):
        call = _ScoreBackward.apply if differentiated(grad, *ctx.saved_tensors) else score_backward
        return _score_gradients(ctx, grad, call)

    @staticmethod
    def jvp(ctx, *tangents):
        primals = [x for x in ctx.saved_tensors if x is not None]
        given = [torch.zeros_like(x) if t is None else t for x, t in zip(primals, tangents, strict=False)]
        return _ScoreJvp.apply(*primals, *given)


class _ScoreJvp(torch.autograd.Function):
    """The directional derivative; its own is a sum of three of the same kind, so forward mode nests (E13)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*tensors):
        half = len(tensors) // 2
        return score_jvp(tensors[:half], tensors[half:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(
            "fused_dissim_score: reverse-mode over forward-mode is not available (grad of jvp). "
            "Use jacrev(jacrev(f)), or autograd twice."
        )

    @staticmethod
    def jvp(ctx, *changes):
        saved, half = ctx.saved_tensors, len(changes) // 2
        changes = [torch.zeros_like(x) if t is None else t for x, t in zip(saved, changes, strict=True)]
        (query, reference), (along_query, along_reference, along_weight) = saved[:2], saved[half : half + 3]
        none = torch.zeros_like(along_weight)
        along_later = _ScoreJvp.apply(*saved[:half], *changes[half:])
        by_weight = _ScoreJvp.apply(query, reference, changes[2], along_query, along_reference, none)
        return along_later + by_weight + _ScoreJvp.apply(query, reference, along_weight, *changes[:2], none)


class _ScoreBackward(torch.autograd.Function):
    """The first derivative, differentiable once: the gradients of sum(v * gradient) for directions v (E13)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, query, reference, weight, backend, *needs):
        return tuple(score_backward(grad, query, reference, weight, backend, *needs))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])  # without it vmap fails before it reaches the refusal below
        ctx.backend, *ctx.needs = inputs[4:]

    @staticmethod
    def backward(ctx, *directions):
        grad, query, reference, weight = ctx.saved_tensors
        given = iter(directions)
        of_query, of_reference, of_weight = (
            next(given) if needed else torch.zeros_like(x)
            for x, needed in zip((query, reference, weight), ctx.needs, strict=True)
        )
        need_grad, need_query, need_reference, need_weight, *_ = ctx.needs_input_grad
        second: list[Tensor | None] = [None, None, None, None]
        if need_grad:
            second[0] = score_jvp([query, reference, weight], [of_query, of_reference, of_weight])
        if need_query or need_reference:
            needs = [need_query, need_reference, False]
            computed = iter(score_backward(grad, query, reference, of_weight, ctx.backend, *needs))
            second[1:3] = (next(computed) if needed else None for needed in needs[:2])
        if need_weight:
            heads = weight.shape[0]  # each head becomes a batch entry with weight 1
            rows = [x.repeat_interleave(heads, 0) for x in (query, reference, of_query, of_reference)]
            ones, flags = torch.ones_like(weight[:1]), (True, True, False)
            signs = score_backward(grad.flatten(0, 1).unsqueeze(1), *rows[:2], ones, ctx.backend, *flags)
            parts = [
                (v * s).unflatten(0, (len(query), heads)).sum((0, 2)) for v, s in zip(rows[2:], signs, strict=True)
            ]
            second[3] = (parts[0] + parts[1]).to(weight.dtype)
        return *second, *[None] * 4

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
