"""Results as Markdown, from the records alone."""

from __future__ import annotations

from ..report import grid
from .bootstrap import DRAWS, LEVEL, Interval
from .comparison import Comparison, Row, compare
from .contrasts import Contrast, contrasts
from .records import Records

HEAD = """\
<!-- Written by `python -m bench.experiments`. Do not edit. -->

# {name}

mAP and recall@1 (R@1) in %, the mean over runs and identities. A run is one split and one seed. Differences are
paired within run and identity, with {level:.0%} intervals by {draws:,} bootstrap draws of splits, seeds and
identities. They hold for the settings that tuning chose, and are not corrected for the number of rows. **Bold**:
learned weights or a changed option. docs/experiments.md says how everything is compared.
"""


def to_markdown(name: str, groups: list[Records]) -> str:
    """The tables of an experiment, one for each group."""
    return "\n".join([HEAD.format(name=name.capitalize(), level=LEVEL, draws=DRAWS), *map(_section, groups)])


def _section(records: Records) -> str:
    title = f"## {records.plan['title'].capitalize()}\n"
    found = compare(records)
    if found is None:
        left = len(records.untuned())
        return f"{title}\nNot complete yet: {left} methods are not tuned, no run has all methods.\n"
    amounts, tuned = records.plan["amounts"], records.plan["tuned"]
    planned = amounts["splits"] * amounts["seeds"]
    part = "test" if tuned else "validation"
    facts = (
        f"{found.runs} of {planned} runs, {found.identities} {part} identities with a query. "
        f"Differences are to {found.reference}"
        + (", the best on validation identities of those without learned weights." if tuned else ".")
    )
    if tuned:
        chosen_on = (
            "the validation identities of all splits" if len(records.tuning_splits) > 1 else "those of split 0"
        )
        facts += f" Settings are chosen on {chosen_on}."
    if diverged := sum(entry.get("failure") is not None for entry in records.of("run")):
        facts += f" {diverged} fits diverged, and count as random scores."
    titles = ["", "mAP", "difference", "R@1", "difference"]
    if tuned:
        titles += ["validation mAP", "trials", "settings"]
    titles.append("core-s per fit")
    lines = [title, facts, "", grid(titles, [_cells(row, tuned) for row in found.rows]), ""]
    if tuned:
        lines += [_conclusion(found), ""]
    if pairs := contrasts(records):
        chosen = ", each with its own settings" if tuned else ""
        lines += [f"Methods that differ in one thing{chosen}:", "", _pairs(pairs), ""]
    if (elsewhere := compare(records, other_cameras=True)) is not None:
        lines += [_other_cameras(elsewhere), ""]
    machines = dict.fromkeys(entry["summary"] for entry in records.of("machine"))
    hours = sum(records.seconds()) / 3600
    lines += [f"{hours:.2f} core-hours. {'; '.join(machines)}", ""]
    return "\n".join(lines)


def _other_cameras(found: Comparison) -> str:
    """The same fits, measured without the images of the query's camera."""
    titles = ["", "mAP", "difference", "R@1", "difference"]
    rows = [_values(row) for row in found.rows]
    return f"In galleries without the images of the query's camera, {found.runs} runs:\n\n{grid(titles, rows)}"


def _pairs(pairs: list[Contrast]) -> str:
    titles = ["", "mAP", "", "R@1", ""]
    rows = [
        [f"{first} - {second}", _gain(precision), precision.verdict, _gain(recall), recall.verdict]
        for first, second, precision, recall in pairs
    ]
    return grid(titles, rows)


def _values(row: Row) -> list[str]:
    name = f"**{row.method}**" if row.ours else row.method
    return [name, _percent(row.precision), _gain(row.precision_gain), _percent(row.recall), _gain(row.recall_gain)]


def _cells(row: Row, tuned: bool) -> list[str]:
    cells = _values(row)
    if tuned:
        settings = ", ".join(f"{key} {value}" for key, value in row.settings.items())
        cells += ["" if row.validation is None else _percent(row.validation), str(row.trials), settings]
    return [*cells, f"{row.seconds:.1f}"]


def _conclusion(found: Comparison) -> str:
    """What the intervals say about the best of ours, by validation, and the reference."""
    best = found.row(found.best_of_ours)
    assert best.precision_gain is not None and best.recall_gain is not None  # the reference is not ours
    return (
        f"Learned weights, best on validation identities: {best.method}. Against {found.reference}: "
        f"{verdicts(best.precision_gain, best.recall_gain)}."
    )


def verdicts(precision_gain: Interval, recall_gain: Interval) -> str:
    """What the intervals of two differences say."""
    return f"mAP {precision_gain.verdict} ({_gain(precision_gain)}), R@1 {recall_gain.verdict} ({_gain(recall_gain)})"


def _gain(gain: Interval | None) -> str:
    if gain is None:
        return "reference"
    return f"{100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
