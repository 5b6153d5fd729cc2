"""The sentences of dissim_retrieval/evidence.json: what the experiment `joint` says about the methods of the demo."""

from __future__ import annotations

import json

from .comparison import best_without_weights, gains
from .records import Records
from .runner import pending
from .tables import verdicts

CLASSIFIER = "hinge, w"
#: Methods of the experiment -> their names in the demo.
OTHERS = {"hinge, L1": "plain L1", "multi-similarity": "multi-similarity"}


def to_json(groups: list[Records]) -> str:
    """A sentence for the key of each group whose trials and runs are all done."""
    complete = [records for records in groups if not pending(records)]
    return json.dumps({records.plan["key"]: _sentence(records) for records in complete}, indent=1) + "\n"


def _sentence(records: Records) -> str:
    """How the classifier differs from the demo's other methods, and from the best of all without learned weights."""
    best = best_without_weights(records)
    names = OTHERS | {best: f"{OTHERS.get(best, best)}, the best without learned weights on validation identities"}
    ours = records.runs(CLASSIFIER)
    against = [
        f"against {name}: {verdicts(*gains(ours, records.runs(method), sorted(ours)))}"
        for method, name in names.items()
    ]
    plan = records.plan
    return (
        f"The pair classifier with hinge loss, in {len(ours)} runs of the experiment on {plan['data']} with "
        f"{plan['backbone']}, which tunes all methods alike (differences in percentage points with 95 % intervals): "
        f"{'; '.join(against)}."
    )
