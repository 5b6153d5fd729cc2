"""The inputs of a case: seeded, contiguous, and the same tensors for every competitor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cases import Case

MARGIN = 1.0
#: Images of a class in a batch. Rows of a class are neighbors, as a P x K sampler draws them.
CLASS_ROWS = 4


@dataclass(frozen=True)
class Problem:
    """query [N, D], reference [M, D], weight [D] (float32), bias; for gradients grad [N, M]; for hinge, logsumexp and
    rank labels; for logsumexp a scale."""

    case: Case
    query: Tensor
    reference: Tensor
    weight: Tensor
    bias: float
    grad: Tensor | None = None
    query_labels: Tensor | None = None
    reference_labels: Tensor | None = None
    scale: float = 1.0

    def first(self, queries: int) -> Problem:
        """The problem with the first `queries` queries only."""
        if queries == self.case.queries:
            return self
        return replace(
            self,
            case=replace(self.case, queries=queries),
            query=self.query[:queries].contiguous(),
            grad=None if self.grad is None else self.grad[:queries].contiguous(),
            query_labels=None if self.query_labels is None else self.query_labels[:queries],
        )

    def one_sign(self) -> Problem:
        """The problem with weights -|w|, the only ones that libraries for L1 distances support (E11)."""
        return replace(self, weight=-self.weight.abs())

    def floats(self) -> tuple[Tensor, Tensor, Tensor]:
        """query, reference, weight in float32, for competitors without half precision."""
        return self.query.float(), self.reference.float(), self.weight


def make(case: Case, device: str = "cpu") -> Problem:
    with torch.device(device):
        return _make(case)


def _make(case: Case) -> Problem:
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    if case.operation.startswith("hinge"):
        return _hinge(case)
    if case.operation.startswith("logsumexp"):
        return _logsumexp(case)
    if case.operation == "rank":
        return _matches(case)
    if case.operation == "quantized_topk":
        return _clustered(case)
    query, reference = torch.randn(case.queries, case.dim), torch.randn(case.references, case.dim)
    differentiated = case.operation in ("score_backward", "score_step")
    grad = torch.randn(case.queries, case.references).to(dtype) if differentiated else None
    weight = torch.randn(case.dim) / case.dim
    return Problem(case, query.to(dtype), reference.to(dtype), weight, 0.5, grad)


def _clustered(case: Case) -> Problem:
    """Rows around class centers and weights of mostly one sign, as after training."""
    centers = torch.randn(case.references // 100, case.dim)
    query, reference = (
        centers[torch.randint(len(centers), (rows,))] + 0.3 * torch.randn(rows, case.dim)
        for rows in (case.queries, case.references)
    )
    weight = torch.randn(case.dim) * 0.25 - 1
    return Problem(case, query, reference, weight / weight.norm(), 0.5)


def _matches(case: Case) -> Problem:
    """`case.k` references for every query's label. Labels are independent of the rows, so that ranks are spread."""
    query, reference = torch.randn(case.queries, case.dim), torch.randn(case.references, case.dim)
    classes = case.references // case.k
    reference_labels = torch.arange(case.references) // case.k
    query_labels = torch.randint(classes, (case.queries,))
    weight = torch.randn(case.dim) / case.dim
    return Problem(case, query, reference, weight, 0.5, None, query_labels, reference_labels)


def _labeled(case: Case) -> Problem:
    """Rows around class centers."""
    classes = case.references // CLASS_ROWS
    reference_labels = torch.arange(case.references) // CLASS_ROWS
    query_labels = torch.arange(case.queries) // CLASS_ROWS % classes
    centers = torch.randn(classes, case.dim)
    query, reference = (
        centers[labels] + 0.5 * torch.randn(len(labels), case.dim) for labels in (query_labels, reference_labels)
    )
    weight = torch.randn(case.dim) * 0.25 - 1  # mostly one sign, as trained weights are, yet not all
    return Problem(case, query, reference, weight / weight.norm(), 0.0, None, query_labels, reference_labels)


def _sample(problem: Problem) -> tuple[Tensor, Tensor]:
    """The scores of 64 queries in float64, and which pairs are negatives."""
    rows = torch.arange(0, problem.case.queries, max(1, problem.case.queries // 64))
    scores = exact_scores(problem.query[rows], problem.reference, problem.weight, 0.0)
    return scores, problem.query_labels[rows, None] != problem.reference_labels


def _hinge(case: Case) -> Problem:
    """The bias is chosen on a sample such that the fraction `case.active` of negative pairs is inside the margin."""
    problem = _labeled(case)
    scores, negative = _sample(problem)
    negatives = scores[negative]
    if case.active == 1:
        threshold = negatives.min() - 10
    else:
        place = max(1, int(len(negatives) * (1 - case.active)))
        threshold = (negatives.kthvalue(place).values + negatives.kthvalue(place + 1).values) / 2
    return replace(problem, bias=-MARGIN - threshold.item())


def _logsumexp(case: Case) -> Problem:
    """The scale is chosen on a sample such that the fraction `case.active` of pairs has a share above rounding."""
    problem = _labeled(case)
    scores, negative = _sample(problem)
    if case.active == 1:
        return replace(problem, scale=1 / (scores.max() - scores.min()).item())
    low, high = 1e-3, 1e6  # a larger scale keeps fewer pairs
    for _ in range(40):
        scale = (low * high) ** 0.5
        active = active_pairs(shares(scores, negative, scale)[1]).double().mean()
        low, high = (scale, high) if active > case.active else (low, scale)
    return replace(problem, scale=scale)


def shares(scores: Tensor, negative: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of each row over its negatives [N], and the share of each pair [N, M] (E15)."""
    logits = torch.where(negative, scale * scores, -torch.inf)
    value = logits.logsumexp(1)
    return value, (logits - value[:, None]).exp()


def active_pairs(share: Tensor) -> Tensor:
    """The pairs [N, M] whose share of the row is above rounding in float32 (E15)."""
    return share * share.shape[1] > torch.finfo(torch.float32).eps / 2


def exact_scores(query: Tensor, reference: Tensor, weight: Tensor, bias: float) -> Tensor:
    """Scores [N, M] in float64 as two L1 distances (E8). It shares no code with the kernels."""
    query, reference, weight = query.double(), reference.double(), weight.double()
    scores = query.new_full((len(query), len(reference)), bias)
    for sign in (1, -1):
        part = (sign * weight).clamp(min=0)
        if part.any():
            scores += sign * torch.cdist(query * part, reference * part, p=1)
    return scores
