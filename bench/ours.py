"""What is measured: the public functions of dissim_kernels, as a user calls them.

Results, here and of every competitor: "score" [N, M] (or RowSums); "score_backward", "score_step" and
"hinge_backward" the gradients of query, reference and weight; "topk" and "certified" scores and indices; "hinge_step"
the loss and the three gradients.
"""

from __future__ import annotations

from dissim_kernels import (
    certified_dissim_topk,
    fused_dissim_hinge_loss,
    fused_dissim_score,
    fused_dissim_topk,
    quantise_references,
)

from .differentiate import backward_of, step_of
from .problem import MARGIN, Problem
from .registry import WHOLE, Call, competitor


def score(problem: Problem, query, reference, weight):
    return fused_dissim_score(query, reference, weight, problem.bias)


@competitor("dissim_kernels", {"score": WHOLE}, ours=True)
def _score(problem: Problem) -> Call:
    return lambda: score(problem, problem.query, problem.reference, problem.weight)


@competitor("dissim_kernels", {"score_backward": WHOLE}, ours=True)
def _score_backward(problem: Problem) -> Call:
    return backward_of(problem, score)


@competitor("dissim_kernels", {"score_step": WHOLE}, ours=True)
def _score_step(problem: Problem) -> Call:
    return step_of(problem, score)


@competitor("dissim_kernels", {"topk": WHOLE}, ours=True)
def _topk(problem: Problem) -> Call:
    p, k = problem, problem.case.k
    return lambda: fused_dissim_topk(p.query, p.reference, p.weight, p.bias, k=k)


@competitor("dissim_kernels", {"certified": WHOLE}, ours=True)
def _certified(problem: Problem) -> Call:
    p, k = problem, problem.case.k
    quantised = quantise_references(p.reference, p.weight)
    return lambda: certified_dissim_topk(p.query, p.reference, p.weight, p.bias, k=k, quantised=quantised)


@competitor("dissim_kernels, codes made in the call", {"certified": WHOLE}, ours=True)
def _certified_anew(problem: Problem) -> Call:
    p, k = problem, problem.case.k
    return lambda: certified_dissim_topk(p.query, p.reference, p.weight, p.bias, k=k)


@competitor("dissim_kernels, float32 top-k", {"certified": 20})
def _certified_peer(problem: Problem) -> Call:
    return _topk(problem)


def hinge(problem: Problem, query, reference, weight):
    p = problem
    return fused_dissim_hinge_loss(
        query, reference, weight, p.bias, p.query_labels, p.reference_labels, margin=MARGIN
    )


@competitor("dissim_kernels", {"hinge_backward": WHOLE}, ours=True)
def _hinge_backward(problem: Problem) -> Call:
    return backward_of(problem, hinge)


@competitor("dissim_kernels", {"hinge_step": WHOLE}, ours=True)
def _hinge_step(problem: Problem) -> Call:
    return step_of(problem, hinge)
