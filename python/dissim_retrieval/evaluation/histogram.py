"""Histogram: the scores of same and different pairs, and the precision-recall curve over all pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ranks import ScoreBlock

#: Recall levels of the precision-recall curve.
RECALL_GRID = torch.linspace(0, 1, 101, dtype=torch.float64)
#: Bins for the precision-recall curve, and how many of them form one bar of the histogram that is shown.
BINS, BINS_PER_BAR = 4000, 50


class Histogram:
    """Counts of same and different pairs by score, in bins over the given scores."""

    def __init__(self, scores: Tensor) -> None:
        finite = scores[scores.isfinite()].double()
        low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 1.0)
        margin = 0.05 * (high - low) or 1.0
        width = (high - low + 2 * margin) / (BINS - 1)
        # multiples of the width, so that 0 is an edge and the counts above it are exact
        self.edges = torch.arange(BINS + 1, dtype=torch.float64).add(math.floor((low - margin) / width)).mul(width)
        self.same = torch.zeros(BINS, dtype=torch.int64)
        self.different = torch.zeros(BINS, dtype=torch.int64)

    def add(self, block: ScoreBlock) -> None:
        self.same += self._count(block.scores[block.match])
        self.different += self._count(block.scores[block.candidate & ~block.match])

    def _count(self, scores: Tensor) -> Tensor:
        inner = self.edges[1:-1].to(scores.device)
        bins = torch.bucketize(scores.double(), inner, right=True)
        return torch.bincount(bins, minlength=BINS).cpu()

    def fractions_above_0(self) -> tuple[float, float]:
        """Of the same and of the different pairs, the fraction that scores 0 or more."""
        first = int(torch.searchsorted(self.edges, 0.0))
        same, different = (
            counts[first:].sum().item() / max(1, counts.sum().item()) for counts in (self.same, self.different)
        )
        return same, different

    def interpolated_precision(self) -> Tensor:
        """For each recall of RECALL_GRID, the best precision of "same if score >= t" with at least that recall.

        t is the lower edge of a bin. The counts at these edges are exact.
        """
        found = self.same.flip(0).cumsum(0).double()
        precision = found / (found + self.different.flip(0).cumsum(0)).clamp(min=1)
        best = precision.flip(0).cummax(0).values.flip(0)
        return best[torch.searchsorted(found / found[-1], RECALL_GRID - 1e-9)]
