"""All experiments in one table: in each group, the best method with learned weights against the best other one."""

from __future__ import annotations

from ..report import grid
from .bootstrap import Interval
from .comparison import Row, compare
from .method_sets import METHOD_SETS
from .records import Records

TITLES = [
    "images", "backbone", "learned weights: mAP / R@1", "best other method: mAP / R@1", "difference in mAP",
    "difference in R@1", "runs",
]  # fmt: skip


def to_markdown(groups: list[Records]) -> str:
    """The table. Both methods of a row were chosen on validation identities; the values are of test identities."""
    return grid(TITLES, [row for records in groups if (row := _row(records)) is not None]) + "\n"


def _row(records: Records) -> list[str] | None:
    """None for a group that tunes nothing, or that has no run of all its methods yet."""
    plan = records.plan
    found = compare(records) if plan["tuned"] else None
    if found is None:
        return None
    ours, [other] = found.best_of_ours, [row for row in found.rows if row.method == found.reference]
    images = plan["data"] if plan["protocol"] == "unseen identities" else f"{plan['data']}, {plan['protocol']}"
    backbone = f"{plan['backbone']}, {METHOD_SETS[plan['methods']].kind}"
    gains = _difference(ours.precision_gain), _difference(ours.recall_gain)
    return [images, backbone, _values(ours), _values(other), *gains, str(found.runs)]


def _values(row: Row) -> str:
    return f"{row.method}: {100 * row.precision:.1f} / {100 * row.recall:.1f}"


def _difference(gain: Interval | None) -> str:
    assert gain is not None  # of ours, which are never the reference
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] {gain.verdict}"
