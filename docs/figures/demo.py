"""Copies the results of `make demo` from runs/demo to bench/results.

make demo && python docs/figures/demo.py       writes bench/results/demo.json, demo.md and demo.png
"""

import json
import shutil
from pathlib import Path

from dissim_retrieval.evidence import experiment_verdict

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "runs" / "demo"
RESULTS = ROOT / "bench" / "results"
COLUMNS = {"mAP": "mAP_mean", "Recall@1": "recall@1"}
#: The set and the backbone of the demo, whose experiment says what may be called ahead.
COMPARED = "emoji", "mobilenet_v2"


def load(path=RESULTS / "demo.json"):
    return json.loads(path.read_text())


def collect(report):
    """What demo.json has of the report's metrics.json: the two metrics of each method, and how they were made."""
    methods = {
        one["name"]: {name: one["metrics"][key] for name, key in COLUMNS.items()} for one in report["evaluations"]
    }
    return {"title": report["title"], "facts": report["facts"], "methods": methods}


def percent(values):
    return [f"{100 * value:.1f}" for value in values.values()]


def page(record):
    """demo.md, which docs/benchmarks.md includes."""
    rows = [["method", *(f"{name}, %" for name in COLUMNS)], ["---"] * (1 + len(COLUMNS))]
    rows += [[name, *percent(values)] for name, values in record["methods"].items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    facts = "\n".join(f"- {name}: {text}" for name, text in record["facts"].items())
    head = "<!-- Written by `python docs/figures/demo.py`. Do not edit. -->"
    return f"{head}\n\n{table}\n\n{experiment_verdict(*COMPARED)}\n\n{facts}\n"


if __name__ == "__main__":
    record = collect(load(REPORT / "metrics.json"))
    (RESULTS / "demo.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "demo.md").write_text(page(record))
    shutil.copyfile(REPORT / "report.png", RESULTS / "demo.png")
