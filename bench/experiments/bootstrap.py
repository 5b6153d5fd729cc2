"""Intervals of the difference of two methods, by a bootstrap of paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

DRAWS = 2000
LEVEL = 0.95

#: (split, seed) -> identities int [I] and a value of each, float [I].
Table = Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]]


class Interval(NamedTuple):
    """A mean and its percentile interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What may be said about a difference."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "not distinguishable"


def paired_difference(first: Table, second: Table) -> Interval:
    """The mean of first - second over runs and identities, and the interval of LEVEL.

    Both tables must have the same runs (split, seed) and identities. Differences are taken within a run and an
    identity. Each draw resamples three things independently, with replacement: the splits; the seeds within each
    drawn split; and the identities, the same ones for all runs. The interval is between the quantiles of the draws'
    means.
    """
    if first.keys() != second.keys() or not first:
        raise ValueError(f"first, second: expected the same runs, got {sorted(first)} and {sorted(second)}")
    runs = sorted(first)
    identities = np.unique(np.concatenate([first[run][0] for run in runs]))
    difference, present = np.zeros((2, len(runs), len(identities)))
    for row, run in enumerate(runs):
        (names, ours), (other_names, others) = first[run], second[run]
        if not np.array_equal(names, other_names):
            raise ValueError(f"first, second: expected the same identities in run {run}")
        place = np.searchsorted(identities, names)
        difference[row, place], present[row, place] = ours - others, 1
    of_runs, of_identities = _counts(tuple(runs), len(identities))
    sums, counts = ((of_runs * (of_identities @ matrix.T)).sum(1) for matrix in (difference, present))
    drawn = counts > 0
    means = sums[drawn] / counts[drawn]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(difference.sum() / present.sum(), low, high)


@lru_cache(maxsize=2)  # the same for all pairs of methods of a group
def _counts(runs: tuple[tuple[int, int], ...], identities: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each draw has each run, [DRAWS, runs], and each identity, [DRAWS, identities]."""
    draw = np.random.default_rng(0)
    of_runs = _run_counts(runs, draw)
    of_identities = draw.multinomial(identities, np.full(identities, 1 / identities), size=DRAWS)
    return of_runs, of_identities.astype(float)


def _run_counts(runs: Sequence[tuple[int, int]], draw: np.random.Generator) -> np.ndarray:
    """How often each draw has each run, [DRAWS, runs]."""
    splits = sorted({split for split, _ in runs})
    split_counts = draw.multinomial(len(splits), np.full(len(splits), 1 / len(splits)), size=DRAWS)
    counts = np.zeros((DRAWS, len(runs)))
    for number, split in enumerate(splits):
        rows = [row for row, run in enumerate(runs) if run[0] == split]
        seeds = draw.multinomial(split_counts[:, number] * len(rows), np.full(len(rows), 1 / len(rows)))
        counts[:, rows] = seeds / len(rows)
    return counts
