"""What the demo claims: its evidence is that of the committed experiments, its figures those of a committed run."""

import importlib.util
import json
from pathlib import Path

import pytest
from dissim_retrieval.evidence import experiment_verdict

from bench.experiments import __main__ as program
from bench.experiments import evidence, joint, records

ROOT = Path(__file__).parents[1]


def experiment(precision, *, seeds=5):
    """Results of the demo's methods on 200 identities with these mean average precisions."""
    compared = {name: {"ours": name == "hinge, w", "trials": [{"lr": 0.1}, {"lr": 0.2}]} for name in joint.IN_DEMO}
    amounts = {"candidates": 2, "splits": 3, "seeds": 5}
    plan = {"key": "emoji-small", "data": "emoji", "backbone": "small", "amounts": amounts, "compared": compared}
    entries = [{"kind": "part", "name": "test", "identities": list(range(200))}]
    for name, mean in zip(joint.IN_DEMO, precision, strict=True):
        entries += [
            {"kind": "trial", "method": name, "trial": trial, "split": split, "mAP": 0.5 + trial / 10}
            for trial in range(2)
            for split in range(3)
        ]
        values = [round((mean + 0.1 * (row % 2)) * records.UNITS) for row in range(200)]
        entries += [
            {"kind": "run", "method": name, "split": split, "seed": seed, "part": "test", "AP": values, "R1": values}
            for split in range(3)
            for seed in range(seeds)
        ]
    return records.Records(plan, entries)


def test_the_packaged_evidence_is_that_of_the_committed_results():
    [path] = (program.RESULTS / "demo").glob("*.jsonl")
    assert program.EVIDENCE.read_text() == evidence.to_json(records.read(path)), "run bench.experiments report"


def test_the_classifier_is_called_ahead_only_where_the_interval_says_so():
    found = json.loads(evidence.to_json(experiment([0.40, 0.38, 0.41])))
    sentence = found["verdicts"]["emoji-small"]
    assert found["settings"] == {name: {"lr": 0.2} for name in joint.IN_DEMO.values()}
    assert "15 runs of the experiment on emoji with small" in sentence
    l1, multi_similarity = sentence.split("against ")[1:]
    assert l1 == "plain L1: mAP ahead (+2.00 [+2.00, +2.00]), R@1 ahead (+2.00 [+2.00, +2.00]); "
    assert multi_similarity.startswith("multi-similarity: mAP behind (-1.00") and "ahead" not in multi_similarity


def test_the_verdict_without_the_query_s_camera_is_told_too():
    """Only multi-similarity differs there."""
    found = experiment([0.40, 0.38, 0.41])
    for run in found.of("run"):
        run[records.OTHER_CAMERAS] = {
            name: [5000 + 100 * (run["method"] == "multi-similarity")] * 200 for name in ("AP", "R1")
        }
    _, standard, others = json.loads(evidence.to_json(found))["verdicts"]["emoji-small"].partition(
        " In galleries without"
    )
    assert standard and "plain L1: mAP not distinguishable (+0.00 [+0.00, +0.00])" in others
    assert "multi-similarity: mAP behind (-1.00 [-1.00, -1.00])" in others


def test_an_experiment_that_is_not_complete_calls_none_ahead():
    assert json.loads(evidence.to_json(experiment([0.40, 0.38, 0.41], seeds=4)))["verdicts"] == {}


def test_without_an_experiment_no_method_is_called_ahead():
    assert experiment_verdict("emoji", "none") == (
        "No experiment has compared these methods on emoji with none yet, so none is called ahead. Their settings "
        "were tuned on emoji with mobilenet_v2."
    )


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("demo_figures", ROOT / "docs" / "figures" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_of_the_demo_are_those_of_the_committed_run(figures):
    record = figures.load()
    assert (ROOT / "bench" / "results" / "demo.md").read_text() == figures.page(record)
