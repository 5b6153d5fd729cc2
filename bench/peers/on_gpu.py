"""The competitors on a GPU: both of our backends, plain torch, torch.compile, and KeOps where it is installed.

torch.compile gets the form that it fuses best and its default options. CUDA graphs are no advantage of one
competitor, because gpu.py replays every call as one.
"""

from __future__ import annotations

from dissim_kernels import (
    fused_dissim_hinge_loss,
    fused_dissim_score,
    fused_dissim_topk,
    quantize_references,
    unavailable_backends,
)

from ..differentiate import backward_of, step_of
from ..problem import MARGIN, Problem
from ..registry import ALL_QUERIES, Call, Unavailable, competitor
from . import keops, plain_torch

FLOAT_OPERATIONS = dict.fromkeys(("score", "score_backward", "score_step", "topk", "hinge_step"), ALL_QUERIES)


def call_of(problem: Problem, score, topk, loss) -> Call:
    """The call for the problem's operation. score, topk, loss: functions of (problem, query, reference, weight)."""
    inputs = problem.query, problem.reference, problem.weight
    return {
        "score": lambda: lambda: score(problem, *inputs),
        "topk": lambda: lambda: topk(problem, *inputs),
        "quantized_topk": lambda: lambda: topk(problem, *inputs),
        "score_backward": lambda: backward_of(problem, score),
        "score_step": lambda: step_of(problem, score),
        "hinge_step": lambda: step_of(problem, loss),
    }[problem.case.operation]()


def ours(backend: str) -> None:
    @competitor(f"dissim_kernels, {backend}", FLOAT_OPERATIONS, ours=True, device="cuda")
    def _prepare(problem: Problem) -> Call:
        if reason := unavailable_backends().get(backend):
            raise Unavailable(reason)

        def score(p, query, reference, weight):
            return fused_dissim_score(query, reference, weight, p.bias, backend=backend)

        def topk(p, query, reference, weight):
            return fused_dissim_topk(query, reference, weight, p.bias, k=p.case.k, backend=backend)

        def loss(p, query, reference, weight):
            sides = p.query_labels, p.reference_labels
            return fused_dissim_hinge_loss(query, reference, weight, p.bias, *sides, margin=MARGIN, backend=backend)

        return call_of(problem, score, topk, loss)


@competitor("dissim_kernels, cuda", {"quantized_topk": ALL_QUERIES}, ours=True, device="cuda")
def _quantized_topk(problem: Problem) -> Call:
    p = problem
    quantized = quantize_references(p.reference, p.weight)
    return lambda: fused_dissim_topk(
        p.query, p.reference, p.weight, p.bias, k=p.case.k, quantized=quantized, backend="cuda"
    )


@competitor("dissim_kernels, cuda, float32 top-k", {"quantized_topk": ALL_QUERIES}, device="cuda")
def _quantized_topk_peer(problem: Problem) -> Call:
    p = problem
    return lambda: fused_dissim_topk(p.query, p.reference, p.weight, p.bias, k=p.case.k, backend="cuda")


def torch_competitor(name: str, form, finish=lambda function: function) -> None:
    @competitor(name, {**FLOAT_OPERATIONS, "quantized_topk": ALL_QUERIES}, device="cuda")
    def _prepare(problem: Problem) -> Call:
        score = finish(form) if problem.case.operation != "hinge_step" else None
        loss = finish(plain_torch.hinge_of(form)) if problem.case.operation == "hinge_step" else None
        return call_of(problem, score, lambda p, *inputs: score(p, *inputs).topk(p.case.k), loss)


ours("cuda")
ours("triton")
torch_competitor("torch.cdist, two calls (E8)", plain_torch.two_distances)
torch_competitor("torch.compile", plain_torch.fusible, plain_torch.compiled)
keops.register("KeOps", "", dict.fromkeys(("score", "topk", "hinge_step"), ALL_QUERIES), device="cuda")
