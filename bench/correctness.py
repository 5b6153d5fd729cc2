"""The correctness check: a sample of a call's result is compared with float64 before the call is timed.

A sample of rows (for the gradient of the weights: of dimensions) is recomputed in float64 from the definition. It
shares no code with the kernels. **error** is the largest difference relative to the sum of the absolute terms of a
number (for a score sum_d |w_d| |q_d - r_d|, as in E9), so 6e-8 is one rounding in float32. The result of
dissim_kernels must be within the rounding bound (E9). The bound of a competitor is that of its own formula, which may
round inputs scaled by the weights (E8, E11) or each term in half precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import MARGIN, Problem, active_pairs, exact_scores, shares

SAMPLE = 8
#: One rounding of float32.
UNIT = torch.finfo(torch.float32).eps / 2
#: The elements of the largest float64 temporary (32 MiB).
BLOCK = 1 << 22
#: Roundings of a term of a gradient besides its additions: 6 as in the table of E9, 4 of a loss's upstream gradient.
OTHER_ROUNDINGS = 10


class RowSums(NamedTuple):
    """The result [N] of a competitor that sums the scores over the references and never stores them."""

    sums: Tensor


class Verdict(NamedTuple):
    """error: as defined above; passed: every sampled number is within its bound."""

    error: float
    passed: bool


class Expected(NamedTuple):
    """Float64 values and what their error bounds are computed from.

    terms: the sum of the absolute terms; scaled_terms: the same with |q| + |r| in place of |q - r|;
    roundings: how often a term is rounded at most; margin_error: the largest difference due to pairs whose float32
    score may be on the other side of the margin, or due to the error of a softmax.
    """

    value: Tensor
    terms: Tensor
    scaled_terms: Tensor
    roundings: int
    margin_error: Tensor | float = 0.0


class CorrectnessCheck:
    """The expected values of a problem, computed once for all competitors that share it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.query, self.reference = problem.query.double(), problem.reference.double()
        self.weight = problem.weight.double()
        self.queries, self.references, self.dims = (
            torch.linspace(0, size - 1, min(size, SAMPLE), device=problem.query.device).long()
            for size in (*problem.query.shape[:1], *self.reference.shape)
        )
        self.expected = getattr(self, f"_{problem.case.operation}")()

    def verdict(self, result: object, ours: bool) -> Verdict:
        """result: what the call of a competitor returns, see ours.py."""
        if self.problem.case.operation in ("topk", "quantized_topk"):
            return self._check_topk(*result[:2], ours=ours)
        if self.problem.case.operation == "rank":
            return self._check_ranks(*result, ours=ours)
        verdicts = [
            self._compare(got, expected, ours)
            for got, expected in zip(self._sampled(result), self._expected_of(result), strict=True)
        ]
        return Verdict(max(v.error for v in verdicts), all(v.passed for v in verdicts))

    def _expected_of(self, result: object) -> list[Expected]:
        if isinstance(result, RowSums):
            *fields, roundings, _ = self.expected[0]
            return [Expected(*(field.sum(1) for field in fields), roundings + self.problem.case.references)]
        return self.expected

    def _sampled(self, result) -> list[Tensor]:
        if isinstance(result, RowSums):
            return [result.sums[self.queries]]
        if self.problem.case.operation == "score":
            return [torch.as_tensor(result)[self.queries]]
        *loss, grad_query, grad_reference, grad_weight = (torch.as_tensor(part) for part in result)
        return [*loss, grad_query[self.queries], grad_reference[self.references], grad_weight[self.dims]]

    def _compare(self, got: Tensor, expected: Expected, ours: bool) -> Verdict:
        difference = (got.double() - expected.value).abs()
        error = (difference / expected.terms.clamp(min=1e-30)).max().item()
        return Verdict(error, bool((difference <= self._bound(expected, ours)).all()))  # a NaN does not pass

    def _bound(self, expected: Expected, ours: bool) -> Tensor:
        """The rounding bound (E9) of each number, or that of a competitor's formula."""
        storage = torch.finfo(self.problem.query.dtype).eps / 2
        gamma = expected.roundings * UNIT / (1 - expected.roundings * UNIT)
        terms = expected.terms if ours else expected.scaled_terms
        bound = gamma * terms * (1 + storage) + storage * expected.value.abs() + expected.margin_error
        return bound if ours or storage <= UNIT else bound + 4 * storage * expected.terms

    # --- expected values of each operation -----------------------------------------------------------------------

    def _score(self) -> list[Expected]:
        return [self._scores_of(self.queries)]

    _topk = _quantized_topk = _rank = _score

    def _scores_of(self, rows: Tensor) -> Expected:
        query, size = self.query[rows], max(1, BLOCK // (len(rows) * self.query.shape[1]))
        parts = []
        for reference in self.reference.split(size):
            difference = (query[:, None] - reference).abs()
            scaled_terms = (query.abs() @ self.weight.abs())[:, None] + reference.abs() @ self.weight.abs()
            parts.append((difference @ self.weight, difference @ self.weight.abs(), scaled_terms))
        value, terms, scaled_terms = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
        bias = self.problem.bias
        return Expected(value + bias, terms + abs(bias), scaled_terms + abs(bias), self.problem.case.dim + 3)

    def _score_backward(self) -> list[Expected]:
        return self._gradients(self.problem.grad.double())

    _score_step = _score_backward

    def _hinge_step(self) -> list[Expected]:
        scores = exact_scores(self.query, self.reference, self.weight, self.problem.bias)
        signs = torch.where(self.problem.query_labels[:, None] == self.problem.reference_labels, 1.0, -1.0).double()
        violation = MARGIN - signs * scores
        sizes = [rows.abs() @ self.weight.abs() for rows in (self.query, self.reference)]
        size = sizes[0][:, None] + sizes[1] + abs(self.problem.bias) + MARGIN
        active, undecided = violation > 0, violation.abs() <= size * self.query.shape[1] * UNIT
        self.active = active.double().mean().item()
        pairs, terms = scores.numel(), (size * (active | undecided)).mean()
        return [
            Expected(violation.clamp(min=0).mean(), terms, terms, self._loss_roundings()),
            *self._gradients(-signs * active / pairs, undecided.double() / pairs),
        ]

    def _hinge_backward(self) -> list[Expected]:
        return self._hinge_step()[1:]

    def _logsumexp_step(self) -> list[Expected]:
        problem = self.problem
        scores = exact_scores(self.query, self.reference, self.weight, problem.bias)
        negative = problem.query_labels[:, None] != problem.reference_labels
        value, share = shares(scores, negative, problem.scale)
        self.active = active_pairs(share).double().mean().item()
        sizes = [rows.abs() @ self.weight.abs() for rows in (self.query, self.reference)]
        size = problem.scale * (sizes[0][:, None] + sizes[1] + abs(problem.bias))  # of the terms of a logit
        share_error = share * torch.expm1(2 * (self.query.shape[1] + 2) * UNIT * size) + UNIT / share.shape[1]
        loss, terms = value.mean(), (value.abs() + size.amax(1)).mean()
        factor = problem.scale / len(value)
        expected = Expected(loss, terms, terms, self._loss_roundings())
        return [expected, *self._gradients(factor * share, factor * share_error)]

    def _logsumexp_backward(self) -> list[Expected]:
        return self._logsumexp_step()[1:]

    def _loss_roundings(self) -> int:
        """Those of a score, of the sums over references and over queries, and a few more."""
        return sum((*self.query.shape, len(self.reference), OTHER_ROUNDINGS))

    def _gradients(self, grad: Tensor, grad_error: Tensor | None = None) -> list[Expected]:
        """The gradients (E2) of sampled rows and, by the definition, of sampled dimensions of the weights.

        grad_error: by how much the upstream gradient `grad` of each pair may differ.
        """
        grad_error = grad.new_zeros(1, 1).expand_as(grad) if grad_error is None else grad_error
        query_rows = self._row_gradients(
            self.query[self.queries], self.reference, grad[self.queries], grad_error[self.queries]
        )
        reference_rows = self._row_gradients(
            self.reference[self.references], self.query, grad.T[self.references], grad_error.T[self.references]
        )
        weights = []
        for d in self.dims.tolist():
            q, r = self.query[:, d, None], self.reference[:, d]
            difference = (q - r).abs_()
            sums = [(grad * difference).sum(), (grad.abs() * difference).sum()]
            sums += [(grad.abs() * (q.abs() + r.abs())).sum(), (grad_error * difference).sum()]
            weights.append(torch.stack(sums))
        value, terms, scaled_terms, margin_error = torch.stack(weights).T
        roundings = len(self.query) + len(self.reference) + OTHER_ROUNDINGS
        return [query_rows, reference_rows, Expected(value, terms, scaled_terms, roundings, margin_error)]

    def _row_gradients(self, rows: Tensor, others: Tensor, grad: Tensor, grad_error: Tensor) -> Expected:
        sums = torch.stack([g @ (row - others).sign() for row, g in zip(rows, grad, strict=True)])
        terms, margin_error = (part.abs().sum(1, keepdim=True) * self.weight.abs() for part in (grad, grad_error))
        return Expected(sums * self.weight, terms, terms, len(others) + OTHER_ROUNDINGS, margin_error)

    def _check_topk(self, scores, indices, ours: bool) -> Verdict:
        """The scores are right for their indices, which are different and have the best ranks."""
        scores, indices = (torch.as_tensor(part)[self.queries] for part in (scores, indices))
        indices = indices.long()
        if any(len(row.unique()) != len(row) for row in indices):
            return Verdict(float("inf"), False)
        *fields, roundings, _ = self.expected[0]
        found = Expected(*(field.gather(1, indices) for field in fields), roundings)
        verdict = self._compare(scores, found, ours)
        ranks = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
        return verdict._replace(passed=verdict.passed and self._compare_ranks(indices, ranks, ours).passed)

    def _check_ranks(self, indices, ranks, ours: bool) -> Verdict:
        """The indices are the matches, and have these ranks."""
        indices, ranks = (torch.as_tensor(part)[self.queries] for part in (indices, ranks))
        matches = self.problem.query_labels[self.queries, None] == self.problem.reference_labels
        if not torch.equal(torch.zeros_like(matches).scatter_(1, indices, True), matches):
            return Verdict(float("inf"), False)
        return self._compare_ranks(indices, ranks, ours)

    def _compare_ranks(self, indices: Tensor, ranks: Tensor, ours: bool) -> Verdict:
        """Whether the exact score of each reference is within two bounds of the exact score that has its rank.

        One bound is that of its own score. The other one, the largest of its query, is by how much the score of a
        rank may change if all scores of the query do.
        """
        expected = self.expected[0]
        bounds = self._bound(expected, ours)
        at_rank = expected.value.sort(1, descending=True).values.gather(1, ranks)
        difference = (expected.value.gather(1, indices) - at_rank).abs()
        error = (difference / expected.terms.gather(1, indices).clamp(min=1e-30)).max().item()
        passed = difference <= bounds.gather(1, indices) + bounds.amax(1, keepdim=True)
        return Verdict(error, bool(passed.all()))
