"""What the experiment `demo` says about the methods of the demo.

evidence.json is written by `python -m bench.experiments report`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def tuned_settings(method: str) -> dict[str, Any]:
    """The settings of a method of the demo that were best on validation identities, after as many trials for each."""
    return _evidence()["settings"][method]


def experiment_verdict(data: str, backbone: str) -> str:
    """Whether the pair classifier is ahead of the demo's other methods, by the experiment on that set."""
    none = (
        f"No experiment has compared these methods on {data} with {backbone} yet, so none is called ahead. Their "
        "settings were tuned on emoji with mobilenet_v2."
    )
    return _evidence()["verdicts"].get(f"{data}-{backbone}", none)


def _evidence() -> dict[str, Any]:
    return json.loads((files(__package__) / "evidence.json").read_text())
