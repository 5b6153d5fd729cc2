"""The gate: the very result of the call to be timed, compared with float64 truth on a sample of it.

A sample of rows (or, for the gradient of the weights, of dimensions) is recomputed from the definition in float64,
against everything it depends on; nothing is shared with the kernels. **error** is the largest difference in units of
the sum of absolute terms behind a number (for a score sum_d |w_d| |q_d - r_d|, as in E9), so 6e-8 is one rounding of
float32. What passes: E9's bound for dissim_kernels; for a competitor the bound of its own route, which may round
inputs scaled by the weights (E8, E11), or every term in a half type.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import MARGIN, Problem, exact_scores

SAMPLE = 8
#: One rounding of float32.
UNIT = torch.finfo(torch.float32).eps / 2
#: No temporary of the truth has more elements than this (32 MiB).
BLOCK = 1 << 22


class RowSums(NamedTuple):
    """The result of a competitor that never stores scores [N, M], but sums them over the references: [N]."""

    sums: Tensor


class Verdict(NamedTuple):
    """error as defined above; passed: every sampled number is within its bound."""

    error: float
    passed: bool


class Truth(NamedTuple):
    """A number's float64 value, the sum of its absolute terms, the same with |q| + |r| for |q - r|, and what it may
    differ by because a float32 score cannot tell on which side of the margin a pair lies."""

    value: Tensor
    terms: Tensor
    route: Tensor
    slack: Tensor | float = 0.0


class Gate:
    """Float64 truth of a problem, computed once for all competitors that share it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.query, self.reference = problem.query.double(), problem.reference.double()
        self.weight = problem.weight.double()
        self.queries, self.references, self.dims = (
            torch.linspace(0, size - 1, min(size, SAMPLE), device=problem.query.device).long()
            for size in (*problem.query.shape[:1], *self.reference.shape)
        )
        self.truths = getattr(self, f"_{problem.case.operation}")()

    def check(self, result: object, ours: bool) -> Verdict:
        """result: what the operation's competitors return, see ours.py."""
        if self.problem.case.operation in ("topk", "quantized_topk"):
            return self._check_topk(*result[:2], ours=ours)
        verdicts = [
            self._judge(got, truth, ours)
            for got, truth in zip(self._sampled(result), self.truths_of(result), strict=True)
        ]
        return Verdict(max(v.error for v in verdicts), all(v.passed for v in verdicts))

    def truths_of(self, result: object) -> list[Truth]:
        if isinstance(result, RowSums):
            return [Truth(*(part.sum(1) for part in self.truths[0][:3]))]
        return self.truths

    def _sampled(self, result) -> list[Tensor]:
        if isinstance(result, RowSums):
            return [result.sums[self.queries]]
        if self.problem.case.operation == "score":
            return [torch.as_tensor(result)[self.queries]]
        *loss, of_query, of_reference, of_weight = (torch.as_tensor(part) for part in result)
        return [*loss, of_query[self.queries], of_reference[self.references], of_weight[self.dims]]

    def _judge(self, got: Tensor, truth: Truth, ours: bool) -> Verdict:
        """E9 with the number of terms that a sum of this operation has."""
        case = self.problem.case
        terms = {"score": case.dim, "topk": case.dim, "quantized_topk": case.dim}.get(
            case.operation, case.queries + case.references + case.dim
        )
        storage = torch.finfo(self.problem.query.dtype).eps / 2
        difference = (got.double() - truth.value).abs()
        bound = (
            (terms + 2) * UNIT * (truth.terms if ours else truth.route)
            + 2 * storage * truth.value.abs()
            + truth.slack
        )
        if not ours and storage > UNIT:
            bound += 4 * storage * truth.terms
        error = (difference / truth.terms.clamp(min=1e-30)).max().item()
        return Verdict(error, bool((difference <= bound).all()))  # a NaN does not pass

    # --- truth, an operation each --------------------------------------------------------------------------------

    def _score(self) -> list[Truth]:
        return [self._scores_of(self.queries)]

    _topk = _quantized_topk = _score

    def _scores_of(self, rows: Tensor) -> Truth:
        query, size = self.query[rows], max(1, BLOCK // (len(rows) * self.query.shape[1]))
        parts = []
        for reference in self.reference.split(size):
            difference = (query[:, None] - reference).abs()
            route = (query.abs() @ self.weight.abs())[:, None] + reference.abs() @ self.weight.abs()
            parts.append((difference @ self.weight, difference @ self.weight.abs(), route))
        value, terms, route = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
        return Truth(value + self.problem.bias, terms + abs(self.problem.bias), route + abs(self.problem.bias))

    def _score_backward(self) -> list[Truth]:
        return self._gradients(self.problem.grad.double())

    _score_step = _score_backward

    def _hinge_step(self) -> list[Truth]:
        scores = exact_scores(self.query, self.reference, self.weight, self.problem.bias)
        signs = torch.where(self.problem.query_labels[:, None] == self.problem.reference_labels, 1.0, -1.0).double()
        violation = MARGIN - signs * scores
        sizes = [rows.abs() @ self.weight.abs() for rows in (self.query, self.reference)]
        size = sizes[0][:, None] + sizes[1] + abs(self.problem.bias) + MARGIN
        active, unsure = violation > 0, violation.abs() <= size * self.query.shape[1] * UNIT
        self.active = active.double().mean().item()
        pairs, terms = scores.numel(), (size * (active | unsure)).mean()
        return [
            Truth(violation.clamp(min=0).mean(), terms, terms),
            *self._gradients(-signs * active / pairs, unsure.double() / pairs),
        ]

    def _hinge_backward(self) -> list[Truth]:
        return self._hinge_step()[1:]

    def _gradients(self, grad: Tensor, unsure: Tensor | None = None) -> list[Truth]:
        """E2 of sampled rows and, from the definition, of sampled dimensions of the weights. `unsure`: by how much
        `grad` may be off, pair by pair."""
        unsure = grad.new_zeros(1, 1).expand_as(grad) if unsure is None else unsure
        of_query = self._of_rows(self.query[self.queries], self.reference, grad[self.queries], unsure[self.queries])
        of_reference = self._of_rows(
            self.reference[self.references], self.query, grad.T[self.references], unsure.T[self.references]
        )
        weights = []
        for d in self.dims.tolist():
            q, r = self.query[:, d, None], self.reference[:, d]
            difference = (q - r).abs_()
            sums = [(grad * difference).sum(), (grad.abs() * difference).sum()]
            sums += [(grad.abs() * (q.abs() + r.abs())).sum(), (unsure * difference).sum()]
            weights.append(torch.stack(sums))
        return [of_query, of_reference, Truth(*torch.stack(weights).T)]

    def _of_rows(self, rows: Tensor, others: Tensor, grad: Tensor, unsure: Tensor) -> Truth:
        sums = torch.stack([g @ (row - others).sign() for row, g in zip(rows, grad, strict=True)])
        terms, slack = (part.abs().sum(1, keepdim=True) * self.weight.abs() for part in (grad, unsure))
        return Truth(sums * self.weight, terms, terms, slack)

    def _check_topk(self, scores, indices, ours: bool) -> Verdict:
        """Scores are right for their indices, and no reference left out is better than the last one by two bounds."""
        scores, indices = (torch.as_tensor(part)[self.queries] for part in (scores, indices))
        if any(len(row.unique()) != len(row) for row in indices):
            return Verdict(float("inf"), False)
        found = Truth(*(part.gather(1, indices.long()) for part in self.truths[0][:3]))
        verdict = self._judge(scores, found, ours)
        best = self.truths[0].value.topk(indices.shape[1]).values
        verdicts = verdict, self._judge(found.value, found._replace(value=best), False)
        return Verdict(verdict.error, all(v.passed for v in verdicts))
