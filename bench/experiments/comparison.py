"""The numbers of a group's table and picture, from its records."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from .bootstrap import Interval, Table, paired_difference
from .records import Records, Run

#: (split, seed) -> result
Runs = dict[tuple[int, int], Run]


class Row(NamedTuple):
    """One method: means over runs and identities, and the differences to the reference, None for itself."""

    method: str
    ours: bool
    settings: dict[str, Any]
    trials: int
    validation: float | None
    precision: float
    recall: float
    precision_gain: Interval | None
    recall_gain: Interval | None
    seconds: float


class Comparison(NamedTuple):
    """The number of `common_runs`, and a row for each method, the best first."""

    rows: list[Row]
    reference: str
    best_of_ours: str
    runs: int
    identities: int

    def row(self, method: str) -> Row:
        [found] = [row for row in self.rows if row.method == method]
        return found


def compare(records: Records, *, other_cameras: bool = False) -> Comparison | None:
    """Compare the methods of a group on their `common_runs`; None if there is no such run.

    other_cameras: in galleries without the images of the query's camera; None with unseen cameras, where no gallery
    has such images. The reference is the method not ours that was best on validation identities: no test result
    chooses it.
    """
    if other_cameras and records.plan["protocol"] == "unseen camera":
        return None
    runs = {name: records.runs(name, other_cameras=other_cameras) for name in records.methods}
    common = common_runs(records, records.methods, other_cameras=other_cameras)
    if not common:
        return None
    ours = [name for name in records.methods if records.plan["compared"][name]["ours"]]
    reference = best_on_validation(records, [name for name in records.methods if name not in ours])
    rows = []
    for name in records.methods:
        settings, validation = records.tuned(name)
        chosen = [runs[name][run] for run in common]
        rows.append(
            Row(
                name, name in ours, settings,
                len(records.plan["compared"][name]["trials"]), validation,
                _mean(chosen, "precision"), _mean(chosen, "recall_at_1"),
                *((None, None) if name == reference else gains(runs[name], runs[reference], common)),
                statistics.median(records.seconds(name)),
            )
        )  # fmt: skip
    rows.sort(key=lambda row: -row.precision)
    best = best_on_validation(records, ours)
    return Comparison(rows, reference, best, len(common), len(runs[reference][common[0]].identities))


def common_runs(records: Records, methods: Iterable[str], *, other_cameras: bool = False) -> list[tuple[int, int]]:
    """The (split, seed) that every one of the methods has, of the seeds that all splits have.

    So every split has the same weight in a mean and in its interval.
    """
    found = set.intersection(*(set(records.runs(name, other_cameras=other_cameras)) for name in methods))
    splits = range(records.plan["amounts"]["splits"])
    return sorted((split, seed) for split, seed in found if all((other, seed) in found for other in splits))


def best_on_validation(records: Records, methods: Iterable[str]) -> str:
    """The method with the highest mAP on validation identities; of equal ones, the first."""
    return max(methods, key=lambda name: records.tuned(name)[1] or 0)


def gains(first: Runs, second: Runs, chosen: list[tuple[int, int]]) -> tuple[Interval, Interval]:
    """The differences of two methods in average precision and recall@1, over the chosen runs."""
    precision, recall = (
        paired_difference(_table(first, chosen, field), _table(second, chosen, field))
        for field in ("precision", "recall_at_1")
    )
    return precision, recall


def _table(runs: Runs, chosen: list[tuple[int, int]], field: str) -> Table:
    return {run: (runs[run].identities, getattr(runs[run], field)) for run in chosen}


def _mean(runs: list[Run], field: str) -> float:
    """Over all identities of all runs, as `paired_difference` weights them."""
    return sum(getattr(run, field).sum() for run in runs) / sum(len(run.identities) for run in runs)
