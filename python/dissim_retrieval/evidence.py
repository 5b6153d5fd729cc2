"""What the accuracy experiments say about the methods of the demo."""

from __future__ import annotations

import json
from importlib.resources import files


def experiment_verdict(data: str, backbone: str) -> str:
    """Whether the pair classifier is ahead of the demo's other methods, by the experiment on this set and backbone.

    A sentence of evidence.json, which `python -m bench.experiments` writes from its complete results.
    """
    sentences = json.loads((files(__package__) / "evidence.json").read_text())
    none = f"No experiment has compared these methods on {data} with {backbone} yet, so none is called ahead."
    return sentences.get(f"{data}-{backbone}", none)
