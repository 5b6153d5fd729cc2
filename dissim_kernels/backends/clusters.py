"""Clusters of references with bounds (E17): the choice of the pivots and the radius of every row.

Everything here is plain torch, except the scores that assign rows to pivots. Any pivots and any assignment are valid:
they decide only how many rows a search has to score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import ACCUMULATE, TopKArguments
from .rounding import gamma, has_bound, max_score_size, parts, underflow_error

#: Rows per cluster in the sample from which pivots are chosen, and in its first part, which offers the first pivots.
SAMPLE_ROWS, SEED_ROWS = 20, 5
#: A row becomes a first pivot with a probability that is this power of its distance to those chosen before it. With
#: 2, as in k-means++, more of them fall into the same cluster, and other clusters get none.
SEED_POWER = 4
#: First pivots that are drawn together.
SEEDS_AT_ONCE = 8
#: How often the pivots are moved to the means of the rows of the sample that are nearest to them.
MEAN_STEPS = 2


class Scorer(NamedTuple):
    """The functions of the backend that assigns rows to pivots."""

    score: Callable
    topk: Callable


def make_clusters(scorer: Scorer, reference: Tensor, weight: Tensor, num_clusters: int, seed: int) -> list[Tensor]:
    """The tensors of `ClusteredReferences` (ops/clusters.py)."""
    acc = ACCUMULATE[reference.dtype]
    weight = weight.to(acc, copy=True).contiguous()  # a copy, because an optimizer changes the original in place
    pivots = _choose_pivots(scorer, reference, weight, num_clusters, seed)
    labels = _nearest(scorer, reference, pivots, weight)
    center = pivots.to(acc).median(0).values if len(pivots) else weight.new_zeros(len(weight))
    radii = _radii(reference, labels, pivots, center, weight)
    order = radii.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    offsets = torch.cat([labels.new_zeros(1), labels.bincount(minlength=len(pivots)).cumsum(0)])
    return [pivots, order, offsets, radii[order], center, weight]


def _radii(reference: Tensor, labels: Tensor, pivots: Tensor, center: Tensor, weight: Tensor) -> Tensor:
    """The radius of each row about its pivot, with its share of the rounding (E17): float64 [M]."""
    acc = weight.dtype
    pivot_sizes = _distance(pivots.to(acc), center, weight)
    radii = torch.empty(len(reference), dtype=torch.float64, device=reference.device)
    rounding, underflow = 4 * gamma(len(weight), acc), 3 * underflow_error(weight)
    for rows, part in parts(reference):
        radius = _distance(part, pivots[labels[rows]].to(acc), weight)
        size = radius + pivot_sizes[labels[rows]]
        bounded = has_bound(part).all(1) & (size < max_score_size(acc))
        bound = radius.double() + rounding * size.double() + underflow
        radii[rows] = torch.where(bounded, bound, torch.inf)
    return radii


def _distance(rows: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """The weighted distance of each row to its other row, or to the only one. A matrix product might round more."""
    return ((rows - others).abs() * weight.abs()).sum(1)


# --- pivots. Weights and rows that are not finite would make distances NaN, so they do not take part ----------------


def _choose_pivots(scorer: Scorer, reference: Tensor, weight: Tensor, num_clusters: int, seed: int) -> Tensor:
    """[C, D] in the dtype of the references, C at most num_clusters."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(reference), generator=generator, device="cpu")[: SAMPLE_ROWS * num_clusters]
    sample = reference[shuffled.to(reference.device)].to(weight.dtype)
    sample = sample[has_bound(sample).all(1)]
    if len(sample):  # without rows whose distance from others might overflow
        distance = _distance(sample, sample.median(0).values, _nearness(weight))
        sample = sample[distance < max_score_size(weight.dtype)]
    if not len(sample):
        return torch.zeros_like(reference[:1])
    pivots = _spread_rows(scorer, sample[: SEED_ROWS * num_clusters], weight, num_clusters, generator)
    for _ in range(MEAN_STEPS):
        labels = _nearest(scorer, sample, pivots, weight)
        count = labels.bincount(minlength=len(pivots))[:, None]
        means = torch.zeros_like(pivots).index_add_(0, labels, sample) / count.clamp(min=1)
        pivots = torch.where((count > 0) & means.isfinite().all(1, True), means, pivots)
    return pivots.to(reference.dtype)


def _spread_rows(scorer: Scorer, sample: Tensor, weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` rows that are far from each other: a few at a time are drawn, with SEED_POWER."""
    chosen = sample[:1]
    distance = _distances(scorer, chosen, sample, weight)
    while len(chosen) < count:
        probability = (distance / distance.max()).nan_to_num(0, 0, 0).double().pow(SEED_POWER).cpu()
        draws = min(SEEDS_AT_ONCE, count - len(chosen), int((probability > 0).sum()))
        if not draws:
            break  # every row equals a chosen one
        drawn = sample[probability.multinomial(draws, generator=generator).to(sample.device)]
        distance = distance.minimum(_distances(scorer, drawn, sample, weight))
        chosen = torch.cat([chosen, drawn])
    return chosen


def _distances(scorer: Scorer, drawn: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """The distance of each row to the nearest of the drawn ones."""
    return -scorer.score(drawn[None], rows[None], _nearness(weight)[None], None)[0, 0].amax(0)


def _nearest(scorer: Scorer, rows: Tensor, pivots: Tensor, weight: Tensor) -> Tensor:
    """The number of the nearest pivot of each row, int64 [M]."""
    search = TopKArguments(rows, pivots, _nearness(weight), None, min(1, len(pivots)), True, None, None, None, "all")
    return scorer.topk(search)[1].flatten()


def _nearness(weight: Tensor) -> Tensor:
    return -weight.abs().nan_to_num(0, 0, 0)
