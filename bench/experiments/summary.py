"""All experiments: learned weights against plain L1, and against the best method of neither kind."""

from __future__ import annotations

from typing import NamedTuple

from ..report import grid
from .bootstrap import Interval
from .comparison import Comparison, best_on_validation, common_runs, compare, gains
from .method_sets import METHOD_SETS, is_plain_l1
from .records import Records

TITLES = [
    "images", "backbone", "learned weights", "plain L1", "others", "learned weights - plain L1",
    "learned weights - others", "runs",
]  # fmt: skip


#: Whether all images of the query's camera are excluded -> the line above the table.
RULES = {
    False: "Excluded from the results of a query: images with its identity and camera (the usual rule).",
    True: "Excluded from the results of a query: all images of its camera. The same fits:",
}


class Summary(NamedTuple):
    """One group: of each kind of method, the one that was best on validation identities, on test identities."""

    images: str
    backbone: str
    ours: str
    plain: str
    other: str
    found: Comparison
    against_plain: tuple[Interval, Interval]
    """The differences of ours to plain in mAP and recall@1."""
    against_other: tuple[Interval, Interval]


def summarize(groups: list[Records], *, other_cameras: bool = False) -> list[Summary]:
    """Without groups that tune nothing, or that have no complete runs of all their methods yet.

    other_cameras: in galleries without the images of the query's camera.
    """
    found = []
    for records in groups:
        comparison = compare(records, other_cameras=other_cameras) if records.plan["tuned"] else None
        if comparison is not None:
            found.append(_summary(records, comparison, other_cameras))
    return found


def _summary(records: Records, found: Comparison, other_cameras: bool) -> Summary:
    plan, ours = records.plan, found.best_of_ours
    without_weights = [name for name in records.methods if not found.row(name).ours]
    plain = best_on_validation(records, filter(is_plain_l1, without_weights))
    other = best_on_validation(records, (name for name in without_weights if not is_plain_l1(name)))
    images = plan["data"] if plan["protocol"] == "unseen identities" else f"{plan['data']}, {plan['protocol']}"
    common = common_runs(records, records.methods, other_cameras=other_cameras)
    runs = {name: records.runs(name, other_cameras=other_cameras) for name in (ours, plain, other)}
    against = [gains(runs[ours], runs[name], common) for name in (plain, other)]
    return Summary(
        images, f"{plan['backbone']}, {METHOD_SETS[plan['methods']].kind}", ours, plain, other, found, *against
    )


def to_markdown(groups: list[Records]) -> str:
    """A table for each of RULES that a group has, mAP / R@1. A difference is bold where its interval excludes 0."""
    tables = []
    for other_cameras, rule in RULES.items():
        rows = [_cells(one) for one in summarize(groups, other_cameras=other_cameras)]
        if rows or not other_cameras:
            tables.append(f"{rule}\n\n{grid(TITLES, rows)}\n")
    return "\n".join(tables)


def _cells(one: Summary) -> list[str]:
    return [
        one.images, one.backbone, *(_values(one.found, name) for name in (one.ours, one.plain, one.other)),
        *(" / ".join(map(_difference, against)) for against in (one.against_plain, one.against_other)),
        str(one.found.runs),
    ]  # fmt: skip


def _values(found: Comparison, method: str) -> str:
    row = found.row(method)
    return f"{method}: {100 * row.precision:.1f} / {100 * row.recall:.1f}"


def _difference(gain: Interval) -> str:
    mean = f"{100 * gain.mean:+.1f}"
    if gain.verdict != "not distinguishable":
        mean = f"**{mean}**"
    return f"{mean} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
