"""dissim_retrieval/evidence.json: what the experiment `demo` says about the methods of the demo."""

from __future__ import annotations

import json

from .comparison import common_runs, gains
from .joint import IN_DEMO
from .records import Records
from .tables import verdicts

CLASSIFIER, *OTHERS = IN_DEMO


def to_json(records: Records) -> str:
    """The settings of each method, and, once every planned run is there, a sentence on their differences."""
    settings = {name: records.tuned(method)[0] for method, name in IN_DEMO.items()}
    amounts, common = records.plan["amounts"], common_runs(records, IN_DEMO)
    complete = len(common) == amounts["splits"] * amounts["seeds"]
    verdicts = {records.plan["key"]: _sentence(records, common)} if complete else {}
    return json.dumps({"settings": settings, "verdicts": verdicts}, indent=1) + "\n"


def _sentence(records: Records, common: list[tuple[int, int]]) -> str:
    """How the classifier differs from the demo's other methods, also in galleries without the query's camera."""
    plan = records.plan
    text = (
        f"The {IN_DEMO[CLASSIFIER]}, in {len(common)} runs of the experiment on {plan['data']} with "
        f"{plan['backbone']} (docs/experiments.md, Demo; differences in percentage points with 95 % intervals): "
        f"{_differences(records, common)}."
    )
    if common_runs(records, IN_DEMO, other_cameras=True) != common:
        return text
    others = _differences(records, common, other_cameras=True)
    return f"{text} In galleries without the images of the query's camera: {others}."


def _differences(records: Records, common: list[tuple[int, int]], *, other_cameras: bool = False) -> str:
    runs = {method: records.runs(method, other_cameras=other_cameras) for method in IN_DEMO}
    return "; ".join(
        f"against {IN_DEMO[method]}: {verdicts(*gains(runs[CLASSIFIER], runs[method], common))}" for method in OTHERS
    )
