"""The compiled kernels of csrc, called through private operators that torch dispatches by device.

This module is the backend `cpu`. cuda.py offers the same functions for CUDA tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from ..contract import (
    ACCUMULATE,
    Filter,
    HingeArguments,
    HingeBackwardArguments,
    LogSumExpArguments,
    LogSumExpBackwardArguments,
    Problem,
    RankArguments,
    TopKArguments,
)
from . import reference as reference_backend
from .clusters import Scorer, make_clusters
from .quantize import positive_groups, quantize_queries, quantize_references  # noqa: F401

LIBRARY = Path(__file__).parents[1] / "_native.so"
BUILD = "In a clone of dissim-kernels, run `pip install -e .` (needs g++ or clang++)."


def _load() -> str | None:
    """Loads the compiled library. Returns None, or the reason why it cannot be loaded."""
    if not LIBRARY.exists():
        return f"the compiled library {LIBRARY.name} was not built. {BUILD}"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the compiled library does not load with torch {torch.__version__}: {error}. {BUILD}"
    return None


NOT_LOADED = _load()
operators = torch.ops.dissim_native


def unsupported_reason(problem: Problem) -> str | None:
    if problem.device.type != "cpu":
        return f"it runs tensors on the CPU, not on {problem.device.type!r}"
    return NOT_LOADED or _unsupported_instruction_set()


@cache
def _unsupported_instruction_set() -> str | None:
    """The reason why the instruction set that DISSIM_ISA names cannot run, or None. The library reads it once."""
    if operators.isa():
        return None
    names = ", ".join(name for name in operators.isas().split() if not name.startswith("["))
    return (
        f"DISSIM_ISA: expected one of the instruction sets that this machine runs ({names}), "
        f"got {os.environ.get('DISSIM_ISA')!r}. Unset it, or set one of these, before Python starts."
    )


def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (query.numel() and reference.numel() and weight.numel()):
        return reference_backend.score(query, reference, weight, bias)  # the kernels need at least one term
    out = query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])
    operators.score(query, reference, _to_acc(weight), None if bias is None else _to_acc(bias), out)
    return out


def score_backward(
    grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    acc_weight = _to_acc(weight)
    inputs = (query, reference, acc_weight)
    grads = [t.new_empty(t.shape) if needed else None for t, needed in zip(inputs, needs, strict=True)]
    operators.score_backward(grad, query, reference, acc_weight, *grads)
    if grads[2] is not None:

        def sum_over_pairs(dims: Tensor) -> Tensor:
            q, r, w = (x[..., dims] for x in inputs)
            return reference_backend.score_backward(grad, q, r, w, (False, False, True))[0]

        fix_nonfinite_weight_grad(grads[2], sum_over_pairs)
        grads[2] = grads[2].to(weight.dtype)
    return [g for g in grads if g is not None]


def fix_nonfinite_weight_grad(grad_weight: Tensor, sum_over_pairs: Callable[[Tensor], Tensor]) -> None:
    """Recomputes, in place, the dimensions of grad_weight [C, D] or [D] that are not finite.

    E2 computes this gradient from two sums over rows, in which Inf - Inf may give NaN where the sum over pairs does
    not. sum_over_pairs(dims) computes the latter for a bool mask of dimensions [D]. The CUDA kernels do this
    themselves, because reading the mask here would wait for the device.
    """
    if grad_weight.device.type != "cpu":
        return
    nonfinite = ~grad_weight.isfinite()
    if grad_weight.dim() == 2:
        nonfinite = nonfinite.any(0)
    if nonfinite.any():
        grad_weight[..., nonfinite] = sum_over_pairs(nonfinite)


def topk(arguments: TopKArguments) -> tuple[Tensor, Tensor]:
    scores, indices = _empty_topk(arguments)
    operators.topk(*_topk_operands(arguments), scores, indices)
    return scores, indices


def hinge(arguments: HingeArguments) -> tuple[Tensor, Tensor, Tensor]:
    query, reference, weight, bias, *labels, margin, num_hard_negatives = arguments
    positive, negative = (query.new_empty(len(query), dtype=ACCUMULATE[query.dtype]) for _ in range(2))
    active = query.new_empty(len(query), (len(reference) + 7) // 8, dtype=torch.uint8)
    operators.hinge(
        *_operands(query, reference, weight, bias), *map(_contiguous, labels), margin,
        -1 if num_hard_negatives is None else num_hard_negatives, positive, negative, active,
    )  # fmt: skip
    return positive, negative, active


def hinge_backward(arguments: HingeBackwardArguments, needs: Sequence[bool]) -> list[Tensor]:
    *upstream, query, reference, weight, query_labels, reference_labels = arguments
    if not (query.numel() and reference.numel()):
        return reference_backend.hinge_backward(arguments, needs)  # zeros
    acc_weight = _to_acc(weight)
    shapes = (query, reference, acc_weight, acc_weight.new_empty(1))
    grads = [t.new_empty(t.shape) if needed else None for t, needed in zip(shapes, needs, strict=True)]
    operators.hinge_backward(
        *map(_contiguous, upstream), query[None], reference[None], acc_weight,
        _contiguous(query_labels), _contiguous(reference_labels), *grads,
    )  # fmt: skip
    if grads[2] is not None:

        def sum_over_pairs(dims: Tensor) -> Tensor:
            only_dims = arguments._replace(
                query=query[:, dims], reference=reference[:, dims], weight=acc_weight[dims]
            )
            return reference_backend.hinge_backward(only_dims, (False, False, True, False))[0]

        fix_nonfinite_weight_grad(grads[2], sum_over_pairs)
        grads[2] = grads[2].to(weight.dtype)
    return [g for g in grads if g is not None]


def quantized_topk(arguments: TopKArguments, quantized: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`topk` with the tensors of `quantize_references`, and how many references were rescored for each query."""
    codes, error_bounds, *grid = quantized
    step = grid[-1]
    kernel_arguments, (scores, indices) = _topk_operands(arguments), _empty_topk(arguments)
    weight, bias = kernel_arguments[2:4]
    query_codes = quantize_queries(arguments.query, bias, grid)
    rescored = arguments.query.new_empty(len(arguments.query), dtype=torch.int64)
    operators.quantized_topk(
        *kernel_arguments, positive_groups(weight), step, *query_codes, codes, error_bounds,
        scores, indices, rescored,
    )  # fmt: skip
    return scores, indices, rescored


cluster_references = partial(make_clusters, Scorer(score, topk))


def clustered_topk(arguments: TopKArguments, clusters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`topk` with the tensors of `cluster_references`, and how many references were scored for each query.

    That number is -1 for the first query, and the result undefined, if the search finds a row number in `order` that
    is none, a negative or NaN radius, or a score outside its bounds.
    """
    pivots, order, offsets, radii, center, _ = clusters
    kernel_arguments, (scores, indices) = _topk_operands(arguments), _empty_topk(arguments)
    scored = arguments.query.new_empty(len(arguments.query), dtype=torch.int64)
    slack = torch.empty_like(scored, dtype=torch.float64)
    operators.clustered_topk(
        *kernel_arguments, pivots[None], order, offsets, radii, center, scores, indices, slack, scored
    )
    return scores, indices, scored


def _topk_operands(arguments: TopKArguments) -> tuple:
    query, reference, weight, bias, k, largest = arguments[:6]
    return *_operands(query, reference, weight, bias), k, largest, *_filter_operands(arguments.filter)


def _operands(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> tuple:
    """The arguments in the form of the kernels: a batch of one, parameters in the accumulator dtype, contiguous."""
    return query[None], reference[None], _to_acc(weight), None if bias is None else _to_acc(bias)


def _filter_operands(filter: Filter) -> tuple:
    return *map(_contiguous, filter[:3]), filter.among_same


def _empty_topk(arguments: TopKArguments) -> tuple[Tensor, Tensor]:
    scores = arguments.query.new_empty(len(arguments.query), arguments.k, dtype=ACCUMULATE[arguments.query.dtype])
    return scores, torch.empty_like(scores, dtype=torch.int64)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _to_acc(tensor: Tensor) -> Tensor:
    """The tensor in its accumulator dtype, contiguous."""
    return tensor.to(ACCUMULATE[tensor.dtype]).contiguous()


def logsumexp(given: LogSumExpArguments) -> tuple[Tensor, Tensor, Tensor]:
    query, reference, weight, bias, scale = given[:5]
    value, mean_score = (query.new_empty(len(query), dtype=ACCUMULATE[query.dtype]) for _ in range(2))
    active = query.new_empty(len(query), (len(reference) + 7) // 8, dtype=torch.uint8)
    operands = _operands(query, reference, weight, bias)
    operators.logsumexp(*operands, scale, *_filter_operands(given.filter), value, mean_score, active)
    return value, mean_score, active


def logsumexp_backward(given: LogSumExpBackwardArguments, needs: Sequence[bool]) -> list[Tensor]:
    grad, value, active, query, reference, weight, bias, scale = given
    acc_weight = _to_acc(weight)
    grads = [t.new_empty(t.shape) if n else None for t, n in zip((query, reference, acc_weight), needs, strict=True)]
    operators.logsumexp_backward(
        *map(_contiguous, (grad, value, active)), query[None], reference[None], acc_weight,
        None if bias is None else _to_acc(bias), scale, *grads,
    )  # fmt: skip
    if grads[2] is not None:
        grads[2] = grads[2].to(weight.dtype)
    return [g for g in grads if g is not None]


def rank(given: RankArguments) -> tuple[Tensor, Tensor]:
    query, reference, weight, bias, *lists = given
    counts, nan_rows = torch.empty_like(given.indices), query.new_empty(len(query), dtype=torch.uint8)
    operators.rank(*_operands(query, reference, weight, bias), *map(_contiguous, lists), counts, nan_rows)
    return counts, nan_rows.bool()


def listed_scores(
    query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, indices: Tensor
) -> Tensor:
    scores = query.new_empty(indices.shape, dtype=ACCUMULATE[query.dtype])
    operands = _operands(query, reference, weight, bias)
    operators.listed_scores(*operands, _contiguous(offsets), _contiguous(indices), scores)
    return scores
