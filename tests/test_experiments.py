"""The accuracy experiments: trials, resuming, intervals, tables. On synthetic features, in seconds."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval.evaluation import cosine
from synthetic_features import AMOUNTS, GROUP, synthetic_parts

from bench.experiments import __main__ as program
from bench.experiments import contrasts, frozen, joint, processes, records, runner, summary, tables
from bench.experiments.bootstrap import paired_difference
from bench.experiments.comparison import best_on_validation, compare
from bench.experiments.data import Parts
from bench.experiments.method_sets import METHOD_SETS
from bench.experiments.plan import EXPERIMENTS, FROZEN_TRIALS, Amounts
from bench.experiments.trial import Fitted, measure_part
from bench.experiments.tuning import Choice, Log, settings_to_try

OURS = "projection, w"
METHODS = {name: frozen.METHODS[name] for name in ("cosine", "PCA, whitened", "projection, L1", OURS)}
RESULTS = Path(program.RESULTS)
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def as_many_trials_with_a_frozen_backbone(monkeypatch):
    monkeypatch.setattr(runner, "FROZEN_TRIALS", 1)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The program with one group of synthetic features; returns a call with the arguments of the command line."""
    monkeypatch.setitem(program.EXPERIMENTS, "frozen", [replace(GROUP, experiment="frozen")])
    monkeypatch.setitem(program.METHODS, "frozen", METHODS)
    monkeypatch.setattr(program, "Amounts", lambda: AMOUNTS)
    parts = synthetic_parts()
    monkeypatch.setattr(program, "load_parts", lambda group, amounts, folder, root: (parts, "fingerprint"))
    threads = torch.get_num_threads()
    yield lambda *arguments, output="out": program.main(["frozen", "--output", str(tmp_path / output), *arguments])
    torch.set_num_threads(threads)


def results(folder):
    return records.read(folder / "frozen" / "synthetic-none.jsonl")


def cells(found):
    return [(e["method"], e.get("trial"), e.get("split"), e.get("seed")) for e in found.entries if "method" in e]


def without_times(found):
    dropped = ("seconds", "datetime", "summary")
    return [{k: v for k, v in e.items() if k not in dropped} for e in found.entries if e["kind"] != "machine"]


def test_interrupted_and_resumed_does_each_cell_once(tiny, tmp_path, monkeypatch):
    assert tiny(output="whole") == 0
    whole = results(tmp_path / "whole")
    trials, candidates, runs = 1 + 3 * 3, 1 + 3 * 2, 4 * 2 * 2
    assert len(cells(whole)) == trials + candidates + runs

    done, real = [], runner.measured

    def interrupted(cell, *arguments):
        if len(done) in (4, 13):
            done.append(None)
            raise KeyboardInterrupt
        done.append(cell)
        return real(cell, *arguments)

    monkeypatch.setattr(program, "measured", interrupted)
    assert tiny() == 130
    path = tmp_path / "out" / "frozen" / "synthetic-none.jsonl"
    path.write_text(path.read_text() + '{"kind":"trial","method":"cos')  # killed while it wrote
    assert tiny() == 130 and tiny() == 0
    cell_list = [cell for cell in done if cell is not None]
    assert len(cell_list) == len(set(cell_list)) == len(cells(whole))
    assert without_times(results(tmp_path / "out")) == without_times(whole)
    for suffix in ("frozen.md", "frozen.png"):
        assert (tmp_path / "out" / suffix).exists()
    assert tiny() == 0 and len(done) == len(cell_list) + 2  # everything is done


def test_several_processes_are_silent_about_lance():
    """lance warns of a fork if it was imported, which the tasks do not use."""
    script = "import lance; from bench.experiments.processes import results; print(sorted(results([1, -2], abs, 2)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[(-2, 2), (1, 1)]\n" and not done.stderr, done.stderr


def test_several_processes_have_the_results_of_one(tiny, tmp_path):
    assert tiny(output="one") == 0 and tiny("--processes", "3", output="several") == 0
    one, several = (sorted(map(str, without_times(results(tmp_path / name)))) for name in ("one", "several"))
    assert one == several


def test_a_process_that_ends_without_a_result_is_an_error():
    def compute(task):
        return os._exit(3) if task == "second" else task

    found = processes.results(["first", "second"], compute, 2)
    with pytest.raises(RuntimeError, match="second: its process ended without a result, with exit code 3"):
        list(found)


def test_budget_ends_the_program_which_continues_later(tiny, tmp_path, capsys):
    assert tiny("--hours", "0") == 0
    output = capsys.readouterr().out
    assert "in all about" in output and "stopped at the budget" in output
    assert len(cells(results(tmp_path / "out"))) == len(METHODS)  # one of each method, to estimate the cost
    assert "no run has all methods" in (tmp_path / "out" / "frozen.md").read_text()
    assert tiny() == 0 and compare(results(tmp_path / "out")).runs == 4


def test_dry_run_writes_nothing(tiny, tmp_path, capsys):
    assert tiny("--dry-run") == 0 and "33 fits left" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_test_part_is_closed_until_every_method_is_tuned(tiny, tmp_path, monkeypatch):
    opened, real = [], Parts.test

    def watched(parts, found):
        opened.append(len(found.of("trial")))
        return real(parts, found)

    monkeypatch.setattr(Parts, "test", watched)
    assert tiny() == 0
    assert set(opened) == {17}  # one setting of cosine, three of the others; on the other split, one and two
    kinds = [entry["kind"] for entry in results(tmp_path / "out").entries]
    assert max(i for i, kind in enumerate(kinds) if kind == "trial") < kinds.index("run")

    plan = runner.make_plan(GROUP, METHODS, AMOUNTS, "")
    with pytest.raises(RuntimeError, match="closed until every method is tuned; not tuned: cosine, PCA"):
        real(synthetic_parts(), records.Records(plan, []))
    with pytest.raises(RuntimeError, match="projection, L1: its best trials are not fitted on all splits yet"):
        records.Records(plan, []).tuned("projection, L1")


def test_other_plan_and_other_process_are_errors(tiny, tmp_path, monkeypatch, capsys):
    assert tiny("--hours", "0") == 0
    path = tmp_path / "out" / "frozen" / "synthetic-none.jsonl"
    before = path.read_text()
    with records.appending(path, results(tmp_path / "out").plan):
        assert tiny() == 1 and "another process continues this file" in capsys.readouterr().err
    monkeypatch.setattr(program, "Amounts", lambda: replace(AMOUNTS, trials=4))
    for options in ((), ("--dry-run",)):
        assert tiny(*options) == 1 and "of the same plan, got others (amounts, compared)" in capsys.readouterr().err
    assert path.read_text() == before


def test_diverged_fits_count_and_are_not_chosen(tmp_path, monkeypatch):
    """In a run, as random scores."""

    def fit(group, train, settings, seed):
        if settings["lr"] == 1:
            raise FloatingPointError("the loss is inf")
        return Fitted(lambda features: features.rows, cosine)

    methods = {"m": runner.Method(fit, {"lr": Choice((1, 2), 1)}, ours=True), "cosine": METHODS["cosine"]}
    parts = synthetic_parts()
    with records.appending(tmp_path / "r.jsonl", runner.make_plan(GROUP, methods, AMOUNTS, "")) as found:
        for _ in ("trials", "candidates"):
            for cell in runner.pending(found)[:3]:
                for entry in runner.measured(cell, GROUP, methods[cell.method], parts, found):
                    found.append(entry)
        assert [e["mAP"] is None for e in found.of("trial")] == [True, False, False, False, True, False]
        assert found.of("trial")[0]["failure"] == "the loss is inf" and found.tuned("m")[0] == {"lr": 2}
        monkeypatch.setattr(found, "tuned", lambda name: ({"lr": 1}, 0.5))
        for cell in runner.pending(found)[:4]:
            for entry in runner.measured(cell, GROUP, methods[cell.method], parts, found):
                found.append(entry)
        assert "2 of 4 runs, 20 test identities with a query" in tables.to_markdown("name", [found])
        assert "2 fits diverged, and count as random scores." in tables.to_markdown("name", [found])
    run, other = found.of("run")[:2]
    assert (
        other["failure"] is None
        and run["failure"] == "the loss is inf"
        and 0 < sum(run["AP"]) / len(run["AP"]) < 0.2 * records.UNITS
    )


def test_of_the_best_trials_the_one_with_the_best_mean_of_all_splits_is_chosen():
    methods = {"m": runner.Method(None, {"lr": Choice((1, 2, 3), 1)})}

    def trial(number, split, mean):
        return {"kind": "trial", "method": "m", "trial": number, "split": split, "mAP": mean}

    first = [trial(0, 0, 0.8), trial(1, 0, 0.9), trial(2, 0, 0.1)]
    found = records.Records(runner.make_plan(GROUP, methods, AMOUNTS, ""), first)
    assert found.candidates("m") == [1, 0] and found.untuned() == ["m"]
    assert [(cell.rank, cell.split) for cell in runner.pending(found)[:2]] == [(0, 1), (1, 1)]
    found.entries += [trial(1, 1, 0.5), trial(0, 1, 0.7)]
    assert found.tuned("m") == ({"lr": 1}, 0.75) and found.untuned() == []
    found.plan["amounts"]["candidates"] = 1
    assert found.tuned("m") == ({"lr": 2}, 0.9) and not [cell for cell in runner.pending(found) if cell.rank]
    found.plan["amounts"]["candidates"] = 2
    found.entries[-1]["mAP"] = None  # it diverged on the other split
    assert found.tuned("m")[0] == {"lr": 2}
    found.entries[-2]["mAP"] = None
    assert found.tuned("m") == ({"lr": 2}, 0.45)
    found.entries[:] = [trial(number, split, None) for number in range(3) for split in (0, 1)]
    assert found.tuned("m") == ({"lr": 1}, 0.0) and found.untuned() == [], (
        "the default, and its runs will diverge too"
    )


# --- Tuning and methods --------------------------------------------------------------------------------------------


def test_no_method_gets_more_trials_and_ranges_are_covered():
    for methods in runner.METHODS.values():
        for method in methods.values():
            tried = settings_to_try(method.space, Amounts().trials)
            finite = all(isinstance(one, Choice) for one in method.space.values())
            assert len(tried) <= 10 if finite else len(tried) == 10
            assert len({json.dumps(one) for one in tried}) == len(tried)
            for name, one in method.space.items():
                values = [settings[name] for settings in tried]
                if isinstance(one, Choice):
                    assert set(values) <= set(one.values)
                else:
                    assert all(one.low <= value <= one.high for value in values) and values[0] == one.default
    space = {"lr": Log(1, 1000, 10)}
    tenths = [int(9 * math.log(one["lr"], 1000)) for one in settings_to_try(space, 10)[1:]]
    assert sorted(tenths) == list(range(9)) and settings_to_try(space, 10) == settings_to_try(dict(space), 10)
    shared = {"hinge, w", "hinge, w <= 0", "hinge, L1", "hinge, cosine"}
    tried = [settings_to_try(runner.METHODS["joint, from scratch"][name].space, 10) for name in shared]
    values = [[(one["lr"], one["head_lr"], one["scale"], one["initial_bias"]) for one in trials] for trials in tried]
    assert values[1:] == values[:-1], "with the same values of the settings that they share"


def test_joint_methods_are_every_loss_on_every_score_and_the_baselines():
    names = {f"{loss}, {score}" for loss in joint.SPACES for score in joint.SCORES}
    assert (
        set(runner.METHODS["joint, from scratch"]) == names | {*joint.BASELINES, joint.DEFAULTS} and len(names) == 12
    )


def test_embeddings_that_are_not_finite_are_a_diverged_fit():
    parts = synthetic_parts()
    with pytest.raises(FloatingPointError, match="an embedding is not finite"):
        measure_part(Fitted(lambda features: features.rows * math.nan, cosine), parts.validation(0))


# --- Intervals -----------------------------------------------------------------------------------------------------


def table(values):
    """values [splits, seeds, identities] -> a table of the bootstrap."""
    array = np.asarray(values, float)
    return {
        (split, seed): (np.arange(array.shape[2]), array[split, seed])
        for split in range(array.shape[0])
        for seed in range(array.shape[1])
    }


def test_interval_of_two_identities_by_hand():
    """The differences 0 and 1 have the draws 0, 1/2, 1 with 1/4, 1/2, 1/4, whatever runs are drawn."""
    first, second = table([[[1, 3]] * 2] * 3), table([[[1, 2]] * 2] * 3)
    found = paired_difference(first, second)
    assert found == (0.5, 0.0, 1.0) and found.verdict == "not distinguishable"
    shifted = table([[[2, 3]] * 2] * 3)
    assert paired_difference(shifted, second) == (1, 1, 1) and paired_difference(shifted, second).verdict == "ahead"
    assert paired_difference(second, shifted).verdict == "behind"


def test_interval_of_splits_and_seeds_by_hand():
    """One identity. Two splits of one seed, 0 and 1: 0, 1/2, 1 again. Two seeds of one split: the same."""
    for values in ([[[0]], [[1]]], [[[0], [1]]]):
        found = paired_difference(table(values), table(np.zeros_like(values)))
        assert found == (0.5, 0.0, 1.0)


def test_interval_of_normal_differences_is_the_normal_one():
    """400 identities, one run: 1.96 standard errors of the mean, within the error of 2,000 draws."""
    values = np.random.default_rng(0).normal(0.2, 1, (1, 1, 400))
    found = paired_difference(table(values), table(np.zeros_like(values)))
    error = values.std() / 20
    np.testing.assert_allclose(found, values.mean() + error * np.array([0, -1.96, 1.96]), atol=0.15 * error)


def test_interval_is_of_paired_differences():
    """Both methods vary much between identities, their difference does not."""
    common = np.random.default_rng(0).normal(0, 5, (2, 2, 50))
    found = paired_difference(table(common + 0.1), table(common))
    np.testing.assert_allclose(found, 0.1, atol=1e-9)
    with pytest.raises(ValueError, match="the same runs"):
        paired_difference(table(common), table(common[:1]))
    other = {run: (names + 1, values) for run, (names, values) in table(common).items()}
    with pytest.raises(ValueError, match="the same identities"):
        paired_difference(table(common), other)


# --- Tables --------------------------------------------------------------------------------------------------------


def test_table_is_that_of_the_records(tiny, tmp_path):
    """The reference is the best on validation identities, only complete runs count, every number follows."""
    assert tiny() == 0
    found = results(tmp_path / "out")
    comparison = compare(found)
    others = [name for name in METHODS if name != OURS]
    assert comparison.reference == max(others, key=lambda name: found.tuned(name)[1])
    row = comparison.row(comparison.best_of_ours)
    runs = [np.array(e["AP"]) / 10_000 for e in found.of("run") if e["method"] == row.method]
    assert row.precision == pytest.approx(np.mean(runs))
    text = (tmp_path / "out" / "frozen.md").read_text()
    assert f"{100 * row.precision:.2f}" in text and f"mAP {row.precision_gain.verdict}" in text
    last = found.entries.pop()
    assert last["kind"] == "run" and compare(found).runs == 2, "its seed is not complete"
    assert tables.to_markdown("frozen", [found]) != text
    (tmp_path / "out" / "frozen.md").unlink()
    assert program.main(["report", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "frozen.md").read_text() == text


def test_a_report_leaves_out_a_file_whose_first_line_is_cut_off(tiny, tmp_path):
    path = tmp_path / "out" / "frozen" / "synthetic-none.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"methods": "fro')
    assert tiny("--dry-run") == 0
    assert program.main(["report", "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "(the usual rule)" in text and "The same fits" not in text, "a rule without a group has no table"


def test_galleries_without_the_camera_of_the_query_have_their_own_table(tiny, tmp_path):
    """Of the runs that have such values: those of earlier versions have none."""
    assert tiny() == 0
    found = results(tmp_path / "out")
    for entry in found.of("run"):
        assert all(np.array(entry["AP"]) <= np.array(entry["other cameras"]["AP"])), "more distractors, higher AP"
    row = compare(found, other_cameras=True).row(OURS)
    runs = [np.array(e["other cameras"]["AP"]) / 10_000 for e in found.of("run") if e["method"] == OURS]
    assert row.precision == pytest.approx(np.mean(runs)) and row.precision > compare(found).row(OURS).precision
    text = tables.to_markdown("frozen", [found])
    title = "In galleries without the images of the query's camera"
    assert f"{100 * row.precision:.2f}" in text.partition(f"{title}, 4 runs:")[2]
    unseen = records.Records(found.plan | {"protocol": "unseen camera"}, found.entries)
    assert title not in tables.to_markdown("protocols", [unseen]), "no gallery has the query's camera there"
    assert not summary.summarize([unseen], other_cameras=True)
    del found.of("run")[0]["other cameras"]
    assert f"{title}, 2 runs:" in tables.to_markdown("frozen", [found])
    for entry in found.of("run"):
        entry.pop("other cameras", None)
    assert title not in tables.to_markdown("frozen", [found])


def test_committed_files_can_be_continued_but_those_that_the_documentation_names(monkeypatch):
    monkeypatch.setattr(runner, "FROZEN_TRIALS", FROZEN_TRIALS)
    groups = {(group.experiment, group.key): group for some in EXPERIMENTS.values() for group in some}
    earlier = set()
    for path in RESULTS.glob("*/*.jsonl"):
        found, group = records.read(path), groups[path.parent.name, path.stem]
        plan = runner.make_plan(group, runner.METHODS[group.methods], Amounts(), found.plan["images"])
        try:
            records.check_plan(path, found.plan, plan)
        except ValueError:
            earlier.add(f"{path.parent.name}/{path.stem}")
    assert earlier == {"joint/glyphs-small"}


def test_committed_tables_are_those_of_the_committed_results():
    every = []
    for folder in sorted(filter(Path.is_dir, RESULTS.glob("*"))):
        groups = [records.read(path) for path in sorted(folder.glob("*.jsonl"))]
        assert folder.with_suffix(".md").read_text() == tables.to_markdown(folder.name, groups)
        assert folder.with_suffix(".png").exists() == any(compare(one) is not None for one in groups)
        every += groups
    assert (RESULTS / "summary.png").exists()
    table = (RESULTS / "summary.md").read_text()
    assert table == summary.to_markdown(every)
    assert f"\n\n{table}\n" in (ROOT / "README.md").read_text(), "copy bench/results/experiments/summary.md"


def test_summary_compares_the_choices_of_validation(tiny, tmp_path):
    assert tiny() == 0
    found = results(tmp_path / "out")
    comparison = compare(found)
    cells, others = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "out" / "summary.md").read_text().splitlines()
        if line.startswith("| synthetic")
    )
    elsewhere = compare(found, other_cameras=True).row(OURS)
    assert others[2] == f"{OURS}: {100 * elsewhere.precision:.1f} / {100 * elsewhere.recall:.1f}"
    assert [cell.partition(": ")[0] for cell in cells[2:5]] == [OURS, "projection, L1", comparison.reference]
    assert cells[2].endswith(
        f": {100 * comparison.row(OURS).precision:.1f} / {100 * comparison.row(OURS).recall:.1f}"
    )
    [contrast] = [one for one in contrasts.contrasts(found) if one[:2] == (OURS, "projection, L1")]
    for cell, gain in zip(cells[5].split(" / "), contrast[2:], strict=True):
        bold = "**" if gain.verdict != "not distinguishable" else ""
        mean, low, high = (f"{100 * value:+.1f}" for value in gain)
        assert cell == f"{bold}{mean}{bold} [{low}, {high}]"


def test_of_equal_validation_results_the_first_is_chosen(monkeypatch):
    """Whatever the test results are."""
    found = records.Records({}, [])
    monkeypatch.setattr(found, "tuned", lambda name: ({}, 0.5))
    assert best_on_validation(found, ["a", "b"]) == "a" and best_on_validation(found, ["b", "a"]) == "b"


def test_groups_have_files_of_their_own():
    keys = [(group.experiment, group.key) for groups in EXPERIMENTS.values() for group in groups]
    assert len(set(keys)) == len(keys)


def test_a_set_of_methods_is_in_every_table():
    assert METHOD_SETS.keys() == runner.METHODS.keys()
    assert {group.methods for groups in EXPERIMENTS.values() for group in groups} == METHOD_SETS.keys()
    parts_of_others = {"joint", "selected, frozen", "selected, from scratch"}
    for name in METHOD_SETS.keys() - parts_of_others:
        paired = {method for pair in METHOD_SETS[name].pairs for method in pair}
        assert paired <= runner.METHODS[name].keys()
