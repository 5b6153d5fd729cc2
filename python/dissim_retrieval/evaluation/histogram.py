"""Histogram: the scores of same and different pairs, and the precision-recall curve over all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from .ranks import ScoreBlock

#: Recall levels of the precision-recall curve.
RECALL_GRID = torch.linspace(0, 1, 101, dtype=torch.float64)
#: Bins for the precision-recall curve, and how many of them form one bar of the histogram that is shown.
BINS, BINS_PER_BAR = 4000, 50


class Histogram:
    """Counts of same and different pairs by score, in bins over the scores of a sample of the pairs.

    The outer bins include scores beyond them.
    """

    def __init__(self, sample: Tensor) -> None:
        finite = sample[sample.isfinite()].double()
        low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)
        margin = 0.05 * (high - low) or 1.0
        self.edges = torch.linspace(low - margin, high + margin, BINS + 1, dtype=torch.float64)
        self.same = torch.zeros(BINS, dtype=torch.int64)
        self.different = torch.zeros(BINS, dtype=torch.int64)
        self._same_above_0 = self._different_above_0 = 0

    def add(self, block: ScoreBlock) -> None:
        same, different = block.scores[block.match], block.scores[block.candidate & ~block.match]
        self.same += self._count(same)
        self.different += self._count(different)
        self._same_above_0 += int((same >= 0).sum())
        self._different_above_0 += int((different >= 0).sum())

    def _count(self, scores: Tensor) -> Tensor:
        inner = self.edges[1:-1].to(scores.device)
        bins = torch.bucketize(scores.double(), inner, right=True)
        return torch.bincount(bins, minlength=BINS).cpu()

    def fractions_above_0(self) -> tuple[float, float]:
        """Of the same and of the different pairs, the fraction that scores 0 or more."""
        return (
            self._same_above_0 / max(1, int(self.same.sum())),
            self._different_above_0 / max(1, int(self.different.sum())),
        )

    def interpolated_precision(self) -> Tensor:
        """For each recall of RECALL_GRID, the best precision of "same if score >= t" with at least that recall.

        t is the lower edge of a bin. The counts at these edges are exact.
        """
        found = self.same.flip(0).cumsum(0).double()
        precision = found / (found + self.different.flip(0).cumsum(0)).clamp(min=1)
        best = precision.flip(0).cummax(0).values.flip(0)
        return best[torch.searchsorted(found / found[-1], RECALL_GRID - 1e-9)]
