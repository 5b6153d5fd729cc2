"""HeldOutCheck: whether a fitted scorer beats cosine and whitening on identities that it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluation import Scorer, cosine, per_query_metrics
from .whitening import SHRINKAGES, within_class_whitening


@dataclass(frozen=True)
class Comparison:
    """A baseline's mean average precision, and how much higher the fitted scorer's is."""

    mAP: float
    gain: float
    standard_error: float | None
    """Of the gain, over the held-out identities; None if only one of them has two rows."""

    @property
    def beaten(self) -> bool:
        """Whether the gain is known to be above twice its standard error."""
        return self.standard_error is not None and self.gain > 2 * self.standard_error

    @property
    def verdict(self) -> str:
        """better, worse, or not clearly better: a difference above twice its standard error is clear."""
        if self.beaten:
            return "better"
        clearly_worse = self.standard_error is not None and self.gain < -2 * self.standard_error
        return "worse" if clearly_worse else "not clearly better"


@dataclass(frozen=True)
class HeldOutCheck:
    """Retrieval among the held-out identities, each embedding a query against all others.

    `baselines` has "cosine" and "whitening": cosine after within-class whitening fitted on the same identities as the
    scorer. Its shrinkage and number of dimensions are the best for the held-out identities themselves, which favors
    the baseline. The mAP is the mean over identities of the mean over their queries.
    """

    identities: int
    embeddings: int
    mAP: float
    baselines: dict[str, Comparison]

    def __str__(self) -> str:
        parts = [
            f"{one.gain:+.3f} (standard error {_three_digits(one.standard_error)}) against {name}'s {one.mAP:.3f}, "
            f"{one.verdict}"
            for name, one in self.baselines.items()
        ]
        return f"mAP {self.mAP:.3f} on {self.identities} held-out identities: {'; '.join(parts)}"


def _three_digits(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.3f}"


def check_held_out(
    scorer: Scorer, embeddings: Tensor, labels: Tensor, fitted: Tensor, checked: Tensor, dim: int
) -> HeldOutCheck:
    """Compare on the rows `checked` (bool [N]). The whitening is fitted on the rows `fitted` (bool [N]).

    dim: dimensions that the whitening may keep instead of all. Cost: twelve rankings of all checked rows.
    """
    rows, identity = embeddings[checked], labels[checked]
    found = average_precisions(scorer, rows, identity)
    baselines = {"cosine": average_precisions(cosine, rows, identity)}
    whitened = []
    for shrinkage in SHRINKAGES:
        whitening = within_class_whitening(embeddings[fitted], labels[fitted], shrinkage)
        for kept in {dim, embeddings.shape[1]}:
            whitened.append(average_precisions(cosine, whitening.top(kept)(rows), identity))
    baselines["whitening"] = max(whitened, key=lambda values: values.mean().item())
    comparisons = {}
    for name, values in baselines.items():
        gains = found - values
        error = gains.std().item() / math.sqrt(len(gains)) if len(gains) > 1 else None
        comparisons[name] = Comparison(values.mean().item(), gains.mean().item(), error)
    return HeldOutCheck(len(found), len(rows), found.mean().item(), comparisons)


def average_precisions(scorer: Scorer, rows: Tensor, labels: Tensor) -> Tensor:
    """The mean average precision of each identity with two or more rows, float64."""
    itself = torch.arange(len(rows), device=rows.device)
    found = per_query_metrics(rows, rows, scorer, labels, labels, exclude_index=itself)
    precision, matched = found.average_precision, found.valid
    _, identity, count = labels.cpu()[matched].unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(count), dtype=precision.dtype).index_add_(0, identity, precision[matched]) / count
