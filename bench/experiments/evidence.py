"""dissim_retrieval/evidence.json: what the experiment `demo` says about the methods of the demo."""

from __future__ import annotations

import json

from .comparison import gains
from .joint import IN_DEMO
from .records import Records
from .tables import verdicts

CLASSIFIER, *OTHERS = IN_DEMO


def to_json(records: Records) -> str:
    """The settings of each method, and a sentence once every split has a run of all methods."""
    settings = {name: records.tuned(method)[0] for method, name in IN_DEMO.items()}
    common = sorted(set.intersection(*(set(records.runs(method)) for method in IN_DEMO)))
    every_split = {split for split, _ in common} == set(range(records.plan["amounts"]["splits"]))
    verdicts = {records.plan["key"]: _sentence(records, common)} if every_split else {}
    return json.dumps({"settings": settings, "verdicts": verdicts}, indent=1) + "\n"


def _sentence(records: Records, common: list[tuple[int, int]]) -> str:
    """How the classifier differs from the demo's other methods, in the runs that all have."""
    ours, plan = records.runs(CLASSIFIER), records.plan
    planned = plan["amounts"]["splits"] * plan["amounts"]["seeds"]
    count = f"{planned}" if len(common) == planned else f"{len(common)} of {planned}"
    against = [
        f"against {IN_DEMO[method]}: {verdicts(*gains(ours, records.runs(method), common))}" for method in OTHERS
    ]
    return (
        f"The {IN_DEMO[CLASSIFIER]}, in {count} runs of the experiment on {plan['data']} with "
        f"{plan['backbone']}, which tunes all methods alike (differences in percentage points with 95 % intervals): "
        f"{'; '.join(against)}."
    )
