"""Pairs of methods that differ in one thing: what learned weights, the score or the loss change."""

from __future__ import annotations

from typing import NamedTuple

from .bootstrap import Interval
from .comparison import common_runs, gains
from .method_sets import METHOD_SETS
from .records import Records


class Contrast(NamedTuple):
    """How much higher the first method's mean average precision and recall@1 are than the second's."""

    first: str
    second: str
    precision: Interval
    recall: Interval


def contrasts(records: Records) -> list[Contrast]:
    """Those of the pairs of METHOD_SETS, over the runs that both methods have."""
    found = []
    for first, second in METHOD_SETS[records.plan["methods"]].pairs:
        if first in records.methods and second in records.methods:
            common = common_runs(records, (first, second))
            if common:
                found.append(Contrast(first, second, *gains(records.runs(first), records.runs(second), common)))
    return found
