"""The benchmark's own promises: its formulas, its gate, its turns, its report. Nothing here is timed in earnest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench.ours
import bench.peers
from bench import ceiling, measure, report
from bench.cases import CASES, STEPS, Case
from bench.correctness import Gate, RowSums
from bench.problem import make
from bench.registry import COMPETITORS, Competitor, competitors_of
from bench.run import Effort, Outcome, Row, run

ROOT = Path(__file__).parents[1]

TINY = {
    "score": Case("score", "score", 6, 70, 24),
    "score_backward": Case("backward", "score_backward", 6, 70, 24),
    "score_step": Case("step", "score_step", 6, 70, 24),
    "topk": Case("topk", "topk", 6, 70, 24, k=3),
    "quantized_topk": Case("quantized_topk", "quantized_topk", 6, 300, 24, k=3),
    "hinge_backward": Case("hinge backward", "hinge_backward", 8, 72, 24, active=0.1),
    "hinge_step": Case("hinge", "hinge_step", 8, 72, 24, active=0.1),
}
#: Those that call a compiler at first use, which takes seconds.
COMPILES = ("torch.compile", "KeOps", "numba")


def result_of(competitor: Competitor, problem):
    return competitor.prepare(problem.one_sign() if competitor.one_sign else problem)()


# --- formulas -----------------------------------------------------------------------------------------------------


def test_a_case_knows_its_elements_its_least_traffic_and_its_limits():
    case = Case("", "score", 2, 1000, 10)
    assert case.elements == 20_000
    assert case.bytes == 4 * (2 * 10 + 1000 * 10 + 2 * 1000)
    ceilings = {"score": 4e9, "backward": 2e9, "memory": 48_080.0}
    assert case.limits(ceilings) == pytest.approx({"arithmetic": 4e9, "memory": 20_000.0})
    assert case.results == (4 * 2 * 1000,)
    hinge = Case("", "hinge_step", 2, 1000, 10, active=0.5)
    assert hinge.results == (4 * 2 * 10, 4 * 1000 * 10)
    assert hinge.limits(ceilings)["arithmetic"] == pytest.approx(1 / (1 / 4e9 + 0.5 / 2e9))


def test_slow_competitors_are_measured_on_fewer_queries_and_never_on_none():
    case = Case("", "score", 4096, 4096, 512)
    assert case.rows_within(case.elements, whole=1, part=0.5) == 4096
    assert case.rows_within(case.elements / 10, whole=1, part=0.5) == 128
    assert case.rows_within(1, whole=1, part=0.5) == 1


def test_every_case_has_a_competitor_of_ours_and_one_of_others():
    for case in CASES:
        assert {row.ours for row in competitors_of(case)} == {True, False}, case.name
    assert {case.operation for case in CASES} == set(STEPS) == set(TINY)
    assert len({case.name for case in CASES}) == len(CASES)


def test_small_cases_of_the_smoke_run_keep_at_least_one_query():
    for case in CASES:
        small = case.shrunk(1 << 20)
        assert min(small.queries, small.references) >= 1 and small.elements <= case.elements


def test_the_share_of_active_pairs_is_the_one_asked_for():
    for share in (0.01, 0.3):
        problem = make(Case("", "hinge_step", 64, 512, 32, active=share))
        assert Gate(problem).active == pytest.approx(share, abs=0.01)


# --- the gate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("competitor", COMPETITORS, ids=lambda row: f"{row.name}: {'/'.join(row.rates)}")
def test_every_competitor_computes_what_it_is_compared_for(competitor, dtype):
    if competitor.unsupported_reason() or competitor.name.startswith(COMPILES):
        pytest.skip(competitor.unsupported_reason() or "compiles at first use: `python -m bench --quick` runs it")
    for operation in competitor.rates:
        if dtype != "float32" and operation != "score":
            continue  # no such case
        problem = make(Case("", operation, *vars_of(TINY[operation]), dtype, k=3, active=0.1))
        gate = Gate(problem.one_sign() if competitor.one_sign else problem)
        assert gate.check(result_of(competitor, problem), competitor.ours).passed


def vars_of(case):
    return case.queries, case.references, case.dim


@pytest.mark.parametrize("operation", TINY)
def test_the_gate_stops_a_result_that_is_a_little_wrong(operation):
    problem = make(TINY[operation])
    gate = Gate(problem)
    ours = next(row for row in competitors_of(TINY[operation]) if row.ours)
    right = result_of(ours, problem)
    assert gate.check(right, ours=True).passed
    parts = [right] if isinstance(right, torch.Tensor) else list(right)
    for place, part in enumerate(parts):
        if part.is_floating_point():
            for wrong in (part * (1 + 1e-3), part + part.abs().max() * 1e-3, part * torch.nan):
                changed = [*parts[:place], wrong, *parts[place + 1 :]]
                verdict = gate.check(changed[0] if len(parts) == 1 else changed, ours=True)
                assert not verdict.passed, (operation, place)


def test_the_gate_stops_indices_that_are_not_the_best():
    problem = make(TINY["topk"])
    gate, (scores, indices) = Gate(problem), bench.ours._topk(problem)()
    worse = indices.clone()
    worse[:, -1] = torch.tensor([next(m for m in range(70) if m not in row) for row in indices.tolist()])
    exact = gate.truths[0].value.float()
    assert not gate.check((exact.gather(1, worse), worse), ours=True).passed
    twice = indices[:, [0, 0, 1]]
    assert not gate.check((scores[:, [0, 0, 1]], twice), ours=True).passed


def test_the_gate_judges_row_sums_of_those_who_store_no_scores():
    problem = make(TINY["score"])
    scores = bench.ours._score(problem)()
    assert Gate(problem).check(RowSums(scores.sum(1)), ours=False).passed
    assert not Gate(problem).check(RowSums(scores.sum(1) * 1.001), ours=False).passed


def test_nobody_is_timed_where_ours_is_wrong(monkeypatch):
    case = TINY["score"]
    rows = [
        Competitor("dissim_kernels", lambda p: lambda: torch.zeros(6, 70), {"score": 1}, ours=True),
        Competitor("right", bench.ours._score, {"score": 1}),
    ]
    monkeypatch.setattr("bench.run.competitors_of", lambda case: rows)
    outcome = run(case, Effort(1, 1e-3), 1, "plain", str)
    assert [(row.wrong, row.seconds) for row in outcome.rows] == [(True, []), (False, [])]
    assert "wrong by" in report.table(outcome)


# --- time, memory, ceilings ---------------------------------------------------------------------------------------


def test_rounds_interleave_and_start_one_further_each_time():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = measure.interleave(calls, rounds=3, least_seconds=0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_peak_memory_counts_what_is_freed_before_the_call_returns():
    measure.peak_extra_bytes(lambda: torch.ones(16).sum())  # what is loaded at first use is nobody's memory
    seen = measure.peak_extra_bytes(lambda: torch.ones(4 << 20).sum())
    if seen is None:
        pytest.skip("this system does not let a process reset its peak of resident memory")
    assert 15 << 20 <= seen < 24 << 20  # pages that were resident before are not seen to rise


def test_ceilings_are_compiled_with_the_flags_of_the_library_and_count_their_work(monkeypatch):
    isa = torch.ops.dissim_native.isa()
    assert "-O3" in ceiling.flags(isa)
    monkeypatch.setattr(ceiling, "ELEMENTS", 1 << 20)
    monkeypatch.setattr(ceiling, "MEMORY_BYTES", 1 << 20)
    tasks, library = 2 * ceiling.TASKS, ceiling.load(isa)
    case = Case("of two results", "hinge_backward", 20, 100, 16)
    with ceiling.ceilings(isa, 2, {*ceiling.ARITHMETIC, "memory", "pages"}, case) as calls:
        assert calls["memory"]() == 1 << 20 and calls["pages"]() == 4 * (20 + 100) * 16
        for name in ceiling.ARITHMETIC:
            shape = (20, 100, 16) if name == "block" else ()
            step = getattr(library, f"peak_{name}")(1, *shape)  # each task does whole steps
            assert calls[name]() == tasks * step * ((1 << 20) // ceiling.TASKS // step) > 0


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_prints_every_row_with_or_without_times(tmp_path):
    case = CASES[0]
    rows = [
        Row("dissim_kernels", True, False, 4096, case.elements, 1e-7, 1 << 20, seconds=[0.2, 0.1, 0.3]),
        Row("fast", False, True, 64, case.elements // 64, 2e-7, None, seconds=[0.01] * 3),
        Row("absent", False, False, 4096, case.elements, reason="not installed: absent"),
    ]
    outcome = Outcome(case, rows, {"score": case.elements / 0.1, "tile": case.elements / 0.13,
                                   "block": case.elements / 0.135, "pages": 4 * 4096**2 / 0.02,
                                   "memory": case.bytes / 0.01})  # fmt: skip
    facts = {"cpu": "c", "cores": 2, "threads": 2, "isa": "avx2", "isas": "avx2", "torch": "2", "torch_isa": "AVX2",
             "python": "3", "compiler": "c++", "system": "s", "packages": {}, "commit": "abc", "load_before": 1.9,
             "load_after": 0.1, "seconds": 1, "quick": True, "datetime": "now", "command": "c"}  # fmt: skip
    paths = report.write([outcome], facts, tmp_path)
    assert [path.name for path in paths] == ["cpu.json", "cpu.md", "cpu.png"]
    text = (tmp_path / "cpu.md").read_text()
    assert "not installed: absent" in text and "64 queries" in text and "the machine was busy" in text
    assert "fast 13.4" in text and "| 42.9" in text  # the best other; ours by its median
    cells = [cell.strip() for cell in text.split("| left")[1].splitlines()[2].split("|")]
    shares = ["100", "30", "5", "20"]  # arithmetic, tile, block, pages
    assert cells[2:9] == ["200", *shares, "45", "10"]  # all, these, the rest; memory
    document = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["stats"]["median"] for row in document["benchmarks"]] == [0.2, 0.01]
    assert document["not_timed"][0]["name"] == "absent"
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")


def test_two_trees_take_turns_and_their_bits_are_compared():
    """This tree against itself; that ratios are found is seen by a limit that no ratio keeps."""
    command = [sys.executable, "-m", "bench.compare", str(ROOT), "--only", "small 128", "--rounds", "2"]
    done = subprocess.run([*command, "--limit", "100"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "identical" in done.stdout, done.stdout + done.stderr
    done = subprocess.run([*command, "--limit", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "slower than 0.0 times" in done.stdout
