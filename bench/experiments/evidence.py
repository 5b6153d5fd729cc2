"""dissim_retrieval/evidence.json: what the experiment `demo` says about the methods of the demo."""

from __future__ import annotations

import json

from .comparison import gains
from .joint import IN_DEMO
from .records import Records
from .runner import pending
from .tables import verdicts

CLASSIFIER, *OTHERS = IN_DEMO


def to_json(records: Records) -> str:
    """The settings of each method, and a sentence once all trials and runs are done."""
    settings = {name: records.tuned(method)[0] for method, name in IN_DEMO.items()}
    verdicts = {} if pending(records) else {records.plan["key"]: _sentence(records)}
    return json.dumps({"settings": settings, "verdicts": verdicts}, indent=1) + "\n"


def _sentence(records: Records) -> str:
    """How the classifier differs from the demo's other methods."""
    ours, plan = records.runs(CLASSIFIER), records.plan
    against = [
        f"against {IN_DEMO[method]}: {verdicts(*gains(ours, records.runs(method), sorted(ours)))}"
        for method in OTHERS
    ]
    return (
        f"The {IN_DEMO[CLASSIFIER]}, in {len(ours)} runs of the experiment on {plan['data']} with "
        f"{plan['backbone']}, which tunes all methods alike (differences in percentage points with 95 % intervals): "
        f"{'; '.join(against)}."
    )
