"""`dissim demo`."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from ..demo import DemoConfig, run_demo
from ..evaluation.report import metric_text
from .output import Output


def demo(config: Annotated[DemoConfig, arg(name="")]) -> Output:
    """Train and compare on real images from pip packages; write the report, an HTML page with pictures, to --out."""
    found = run_demo(config)
    metrics = {evaluation.name: evaluation.metrics for evaluation in found.evaluations}
    return Output(
        f"{metric_text(found.evaluations, found.note)}\nReport: {found.page}",
        {"report": str(found.page), "note": found.note, "metrics": metrics},
    )
