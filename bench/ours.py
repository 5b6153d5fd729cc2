"""Our implementation: the public functions of dissim_kernels, as a user calls them.

The calls return, here and for every competitor:
- "score": scores [N, M], or RowSums;
- "score_backward", "score_step", "hinge_backward", "logsumexp_backward": the gradients of query, reference, weight;
- "topk", "quantized_topk": scores and indices;
- "rank": indices and ranks of every query's matches [N, k];
- "hinge_step", "logsumexp_step": the loss and the three gradients.
"""

from __future__ import annotations

import dissim_kernels

from .differentiate import backward_of, step_of
from .peers.plain_torch import ranks_by_sort
from .problem import MARGIN, Problem
from .registry import ALL_QUERIES, Call, competitor


def score(problem: Problem, query, reference, weight):
    return dissim_kernels.fused_dissim_score(query, reference, weight, problem.bias)


@competitor("dissim_kernels", {"score": ALL_QUERIES}, ours=True)
def _score(problem: Problem) -> Call:
    return lambda: score(problem, problem.query, problem.reference, problem.weight)


@competitor("dissim_kernels", {"score_backward": ALL_QUERIES}, ours=True)
def _score_backward(problem: Problem) -> Call:
    return backward_of(problem, score)


@competitor("dissim_kernels", {"score_step": ALL_QUERIES}, ours=True)
def _score_step(problem: Problem) -> Call:
    return step_of(problem, score)


@competitor("dissim_kernels", {"topk": ALL_QUERIES}, ours=True)
def _topk(problem: Problem) -> Call:
    p, k = problem, problem.case.k
    return lambda: dissim_kernels.fused_dissim_topk(p.query, p.reference, p.weight, p.bias, k=k)


@competitor("dissim_kernels", {"quantized_topk": ALL_QUERIES}, ours=True)
def _quantized_topk(problem: Problem) -> Call:
    p, k = problem, problem.case.k
    quantized = dissim_kernels.quantize_references(p.reference, p.weight)
    return lambda: dissim_kernels.fused_dissim_topk(p.query, p.reference, p.weight, p.bias, k=k, quantized=quantized)


@competitor("dissim_kernels, codes computed in the call", {"quantized_topk": ALL_QUERIES}, ours=True)
def _quantize_and_topk(problem: Problem) -> Call:
    p, k = problem, problem.case.k

    def run():
        quantized = dissim_kernels.quantize_references(p.reference, p.weight)
        return dissim_kernels.fused_dissim_topk(p.query, p.reference, p.weight, p.bias, k=k, quantized=quantized)

    return run


@competitor("dissim_kernels, float32 top-k", {"quantized_topk": 20})
def _quantized_topk_peer(problem: Problem) -> Call:
    return _topk(problem)


def hinge(problem: Problem, query, reference, weight):
    p = problem
    return dissim_kernels.fused_dissim_hinge_loss(
        query, reference, weight, p.bias, p.query_labels, p.reference_labels, margin=MARGIN
    )


@competitor("dissim_kernels", {"hinge_backward": ALL_QUERIES}, ours=True)
def _hinge_backward(problem: Problem) -> Call:
    return backward_of(problem, hinge)


@competitor("dissim_kernels", {"hinge_step": ALL_QUERIES}, ours=True)
def _hinge_step(problem: Problem) -> Call:
    return step_of(problem, hinge)


def logsumexp(problem: Problem, query, reference, weight):
    p = problem
    labels = {"query_labels": p.query_labels, "reference_labels": p.reference_labels}
    return dissim_kernels.fused_dissim_logsumexp(query, reference, weight, p.bias, scale=p.scale, **labels).mean()


@competitor("dissim_kernels", {"logsumexp_backward": ALL_QUERIES}, ours=True)
def _logsumexp_backward(problem: Problem) -> Call:
    return backward_of(problem, logsumexp)


@competitor("dissim_kernels", {"logsumexp_step": ALL_QUERIES}, ours=True)
def _logsumexp_step(problem: Problem) -> Call:
    return step_of(problem, logsumexp)


@competitor("dissim_kernels", {"rank": ALL_QUERIES}, ours=True)
def _rank(problem: Problem) -> Call:
    p, shape = problem, (problem.case.queries, problem.case.k)
    labels = {"query_labels": p.query_labels, "reference_labels": p.reference_labels}

    def run():
        found = dissim_kernels.fused_dissim_rank(p.query, p.reference, p.weight, p.bias, **labels)
        return found.indices.view(shape), found.ranks.view(shape)

    return run


@competitor("dissim_kernels, scores, sorted", {"rank": 5})
def _sorted_scores(problem: Problem) -> Call:
    return ranks_by_sort(problem, lambda query: score(problem, query, problem.reference, problem.weight))
