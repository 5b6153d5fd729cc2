"""PyTorch without dissim_kernels: eager broadcasting in chunks, the same compiled, and two calls of torch.cdist."""

from __future__ import annotations

import torch
from torch import Tensor

from ..differentiate import backward_of, step_of
from ..measure import min_seconds
from ..problem import MARGIN, Problem
from ..registry import Call, competitor

#: Numbers of differences that the eager form computes at a time: from what fits in L2 to 16 MiB of float32. The
#: fastest on this machine is found by trying.
CHUNKS = (1 << 15, 1 << 17, 1 << 20, 1 << 22)


def broadcast(problem: Problem, query: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """The definition with the N x M x D tensor of differences."""
    difference = (query[:, None] - reference).abs()
    return torch.nn.functional.linear(difference, weight[None].to(query.dtype)).squeeze(-1) + problem.bias


def fusible(problem: Problem, query: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """The form that torch.compile fuses best: a product and a sum instead of a matrix product."""
    difference = (query[:, None].float() - reference.float()).abs()
    return ((difference * weight).sum(-1) + problem.bias).to(query.dtype)


def two_distances(problem: Problem, query: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """One distance for the positive and one for the negative weights (E8)."""
    query, reference = query.float(), reference.float()  # torch.cdist has no half types
    parts = [
        torch.cdist(query * part, reference * part, p=1) for part in (weight.clamp(min=0), (-weight).clamp(min=0))
    ]
    return parts[0] - parts[1] + problem.bias


def compiled(function):
    """torch.compile for one shape. The first call compiles and is not timed."""
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # a retained graph (backward only) needs its buffers
    return torch.compile(function, dynamic=False, fullgraph=True)


# --- score -------------------------------------------------------------------------------------------------------


@competitor("torch eager, chunked", {"score": 0.3})
def _eager(problem: Problem) -> Call:
    def score(chunk: int, query: Tensor, reference: Tensor) -> Tensor:
        references = max(1, chunk // problem.case.dim)
        parts, rows = reference.split(references), query.split(max(1, references // len(reference)))
        return torch.cat([torch.cat([broadcast(problem, q, r, problem.weight) for r in parts], 1) for q in rows])

    sample = problem.query[:8], problem.reference[:4096]
    fastest = min(CHUNKS, key=lambda chunk: min_seconds(lambda: score(chunk, *sample)))
    return lambda: score(fastest, problem.query, problem.reference)


@competitor("torch.compile", {"score": 8})
def _compiled(problem: Problem) -> Call:
    function, inputs = compiled(fusible), (problem.query, problem.reference, problem.weight)
    return lambda: function(problem, *inputs)


@competitor("torch.cdist, two calls (E8)", {"score": 1.5})
def _cdist(problem: Problem) -> Call:
    return lambda: two_distances(problem, problem.query, problem.reference, problem.weight)


# --- backward, and forward with backward ---------------------------------------------------------------------------


def _differentiable(operation: str, name: str, function, backward: float, step: float) -> None:
    @competitor(name, {f"{operation}_backward": backward})
    def _backward(problem: Problem) -> Call:
        return backward_of(problem, function())

    @competitor(name, {f"{operation}_step": step})
    def _step(problem: Problem) -> Call:
        return step_of(problem, function())


_differentiable("score", "torch eager", lambda: broadcast, 0.2, 0.1)
_differentiable("score", "torch.compile", lambda: compiled(fusible), 1, 0.9)
_differentiable("score", "torch.cdist, two calls (E8)", lambda: two_distances, 1, 0.6)


# --- top-k, ranks and losses ------------------------------------------------------------------------------------


@competitor("torch.compile score, topk", {"topk": 8})
def _topk(problem: Problem) -> Call:
    function, inputs = compiled(fusible), (problem.query, problem.reference, problem.weight)
    return lambda: function(problem, *inputs).topk(problem.case.k)


@competitor("torch.cdist (E8), topk", {"topk": 1.5})
def _cdist_topk(problem: Problem) -> Call:
    return lambda: two_distances(problem, problem.query, problem.reference, problem.weight).topk(problem.case.k)


def hinge_of(score):
    def loss(problem: Problem, query: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        same = problem.query_labels[:, None] == problem.reference_labels
        signs = torch.where(same, 1.0, -1.0)
        return (MARGIN - signs * score(problem, query, reference, weight)).clamp(min=0).mean()

    return loss


_differentiable("hinge", "torch.compile", lambda: compiled(hinge_of(fusible)), 0.2, 0.17)
_differentiable("hinge", "torch.cdist, two calls (E8)", lambda: hinge_of(two_distances), 0.8, 0.6)


def logsumexp_of(score):
    def loss(problem: Problem, query: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
        same = problem.query_labels[:, None] == problem.reference_labels
        logits = problem.scale * score(problem, query, reference, weight)
        return logits.masked_fill(same, -torch.inf).logsumexp(1).mean()

    return loss


_differentiable("logsumexp", "torch.compile", lambda: compiled(logsumexp_of(fusible)), 0.15, 0.1)
# torch.compile computes all differences again for every use of a score. Compiled alone, the scores are stored.
_differentiable("logsumexp", "torch.compile of the scores", lambda: logsumexp_of(compiled(fusible)), 1, 0.9)
_differentiable("logsumexp", "torch.cdist, two calls (E8)", lambda: logsumexp_of(two_distances), 0.6, 0.4)

#: The scores that are sorted at a time, 64 MiB.
SORTED_SCORES = 1 << 24


def ranks_by_sort(problem: Problem, score) -> Call:
    """The matches [N, k] and their places in the sorted rows of score(query) [N, M], some queries at a time."""
    size = max(1, SORTED_SCORES // problem.case.references)
    parts = list(zip(problem.query.split(size), problem.query_labels.split(size), strict=True))

    def ranks(query: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        order = score(query).argsort(dim=1, descending=True, stable=True)
        places = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        indices = matches_of(labels, problem)
        return indices, places.gather(1, indices)

    return lambda: tuple(map(torch.cat, zip(*(ranks(*part) for part in parts), strict=True)))


def ranks_by_comparison(problem: Problem, score) -> Call:
    """The same by comparing every score with each match's, which is faster for few matches."""
    size = max(1, SORTED_SCORES // problem.case.references)
    parts = list(zip(problem.query.split(size), problem.query_labels.split(size), strict=True))

    def ranks(query: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores, indices = score(query), matches_of(labels, problem)
        counts = []
        for index in indices.split(1, dim=1):
            own = scores.gather(1, index)
            tied_before = (scores == own) & (torch.arange(scores.shape[1]) < index)
            counts.append(((scores > own) | tied_before).sum(1, keepdim=True))
        return indices, torch.cat(counts, 1)

    return lambda: tuple(map(torch.cat, zip(*(ranks(*part) for part in parts), strict=True)))


def matches_of(labels: Tensor, problem: Problem) -> Tensor:
    """The references of each label [N, k], ascending."""
    return (labels[:, None] == problem.reference_labels).nonzero()[:, 1].view(len(labels), -1)


@competitor("torch.compile score, sorted", {"rank": 3})
def _sorted(problem: Problem) -> Call:
    function = compiled(fusible)
    return ranks_by_sort(problem, lambda query: function(problem, query, problem.reference, problem.weight))


@competitor("torch.compile score, compared", {"rank": 5})
def _compared(problem: Problem) -> Call:
    function = compiled(fusible)
    return ranks_by_comparison(problem, lambda query: function(problem, query, problem.reference, problem.weight))


@competitor("torch.cdist (E8), sorted", {"rank": 1})
def _cdist_sorted(problem: Problem) -> Call:
    return ranks_by_sort(problem, lambda query: two_distances(problem, query, problem.reference, problem.weight))
