"""All experiments in one table: learned weights against plain L1, and against the best method of neither kind."""

from __future__ import annotations

from ..report import grid
from .bootstrap import Interval
from .comparison import Comparison, best_on_validation, common_runs, compare, gains
from .method_sets import METHOD_SETS, is_plain_l1
from .records import Records

TITLES = [
    "images", "backbone", "learned weights", "plain L1", "others", "learned weights - plain L1",
    "learned weights - others", "runs",
]  # fmt: skip


def to_markdown(groups: list[Records]) -> str:
    """The table, mAP / R@1. Of each kind, the method that was best on validation identities, on test identities.

    A difference is bold where its interval excludes 0.
    """
    return grid(TITLES, [row for records in groups if (row := _row(records)) is not None]) + "\n"


def _row(records: Records) -> list[str] | None:
    """None for a group that tunes nothing, or that has no run of all its methods yet."""
    plan = records.plan
    found = compare(records) if plan["tuned"] else None
    if found is None:
        return None
    without_weights = [name for name in records.methods if not found.row(name).ours]
    plain = best_on_validation(records, filter(is_plain_l1, without_weights))
    other = best_on_validation(records, (name for name in without_weights if not is_plain_l1(name)))
    images = plan["data"] if plan["protocol"] == "unseen identities" else f"{plan['data']}, {plan['protocol']}"
    return [
        images, f"{plan['backbone']}, {METHOD_SETS[plan['methods']].kind}",
        *(_values(found, name) for name in (found.best_of_ours, plain, other)),
        *(_differences(records, found, name) for name in (plain, other)), str(found.runs),
    ]  # fmt: skip


def _values(found: Comparison, method: str) -> str:
    row = found.row(method)
    return f"{method}: {100 * row.precision:.1f} / {100 * row.recall:.1f}"


def _differences(records: Records, found: Comparison, other: str) -> str:
    common = common_runs(records, records.methods)
    return " / ".join(map(_difference, gains(records.runs(found.best_of_ours), records.runs(other), common)))


def _difference(gain: Interval) -> str:
    mean = f"{100 * gain.mean:+.1f}"
    if gain.verdict != "not distinguishable":
        mean = f"**{mean}**"
    return f"{mean} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
