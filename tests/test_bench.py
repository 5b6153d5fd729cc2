"""The benchmark itself: its formulas, its correctness check, its rounds, its report. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench.ours
import bench.peers
from bench import clustered_search, index_speed, measure, peak, report
from bench.cases import CASES, COSTS, Case
from bench.correctness import CorrectnessCheck, RowSums
from bench.problem import make
from bench.registry import COMPETITORS, Competitor, competitors_of
from bench.run import CaseResult, Measurement, TimeBudget, run
from dissim_kernels import fused_dissim_topk

ROOT = Path(__file__).parents[1]

TINY = {
    "score": Case("score", "score", 6, 70, 24),
    "score_backward": Case("backward", "score_backward", 6, 70, 24),
    "score_step": Case("step", "score_step", 6, 70, 24),
    "topk": Case("topk", "topk", 6, 70, 24, k=3),
    "quantized_topk": Case("quantized_topk", "quantized_topk", 6, 300, 24, k=3),
    "hinge_backward": Case("hinge backward", "hinge_backward", 8, 72, 24, active=0.1),
    "hinge_step": Case("hinge", "hinge_step", 8, 72, 24, active=0.1),
    "logsumexp_backward": Case("log-sum-exp backward", "logsumexp_backward", 8, 72, 24, active=0.1),
    "logsumexp_step": Case("log-sum-exp", "logsumexp_step", 8, 72, 24, active=0.1),
    "rank": Case("rank", "rank", 6, 72, 24, k=3),
}
#: Competitors that compile at their first call, which takes seconds.
COMPILES = ("torch.compile", "KeOps", "numba")


def result_of(competitor: Competitor, problem):
    return competitor.prepare(problem.one_sign() if competitor.one_sign else problem)()


# --- formulas -----------------------------------------------------------------------------------------------------


def test_case_computes_elements_memory_traffic_and_limits():
    case = Case("", "score", 2, 1000, 10)
    assert case.elements == 20_000
    assert case.bytes == 4 * (2 * 10 + 1000 * 10 + 2 * 1000)
    peaks = {"score": 4e9, "backward": 2e9, "memory": 48_080.0}
    assert case.limits(peaks) == pytest.approx({"arithmetic": 4e9, "memory": 20_000.0})
    assert case.results == (4 * 2 * 1000,)
    hinge = Case("", "hinge_step", 2, 1000, 10, active=0.5)
    assert hinge.results == (4 * 2 * 10, 4 * 1000 * 10)
    assert hinge.limits(peaks)["arithmetic"] == pytest.approx(1 / (1 / 4e9 + 0.5 / 2e9))


def test_slow_competitors_run_on_fewer_queries_but_at_least_one():
    case = Case("", "score", 4096, 4096, 512)
    assert case.queries_within(case.elements, full_s=1, sampled_s=0.5) == 4096
    assert case.queries_within(case.elements / 10, full_s=1, sampled_s=0.5) == 128
    assert case.queries_within(1, full_s=1, sampled_s=0.5) == 1


def test_every_case_has_our_function_and_a_competitor():
    for case in CASES:
        assert {row.ours for row in competitors_of(case)} == {True, False}, case.name
    assert {case.operation for case in CASES} == set(COSTS) == set(TINY)
    assert len({case.name for case in CASES}) == len(CASES)


def test_shrunk_cases_keep_at_least_one_query():
    for case in CASES:
        small = case.shrunk(1 << 20)
        assert min(small.queries, small.references) >= 1 and small.elements <= case.elements


def test_fraction_of_active_pairs_matches_the_case():
    for operation in ("hinge_step", "logsumexp_step"):
        for active in (0.01, 0.3):
            problem = make(Case("", operation, 64, 512, 32, active=active))
            assert CorrectnessCheck(problem).active == pytest.approx(active, abs=0.01)
    everything = make(Case("", "logsumexp_step", 64, 512, 32))
    assert (
        CorrectnessCheck(everything).active
        == (everything.query_labels[:, None] != everything.reference_labels).double().mean()
    )


# --- the correctness check ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("competitor", COMPETITORS, ids=lambda row: f"{row.name}: {'/'.join(row.rates)}")
def test_every_competitor_passes_the_correctness_check(competitor, dtype):
    if competitor.unsupported_reason() or competitor.name.startswith(COMPILES):
        pytest.skip(competitor.unsupported_reason() or "it compiles at its first call: run `python -m bench --quick`")
    for operation in competitor.rates:
        if dtype != "float32" and operation != "score":
            continue  # no such case
        problem = make(Case("", operation, *vars_of(TINY[operation]), dtype, k=3, active=0.1))
        check = CorrectnessCheck(problem.one_sign() if competitor.one_sign else problem)
        assert check.verdict(result_of(competitor, problem), competitor.ours).passed


def vars_of(case):
    return case.queries, case.references, case.dim


@pytest.mark.parametrize("operation", TINY)
def test_correctness_check_fails_slightly_wrong_results(operation):
    problem = make(TINY[operation])
    check = CorrectnessCheck(problem)
    ours = next(row for row in competitors_of(TINY[operation]) if row.ours)
    right = result_of(ours, problem)
    assert check.verdict(right, ours=True).passed
    parts = [right] if isinstance(right, torch.Tensor) else list(right)
    for place, part in enumerate(parts):
        if part.is_floating_point():
            for wrong in (part * (1 + 1e-3), part + part.abs().max() * 1e-3, part * torch.nan):
                changed = [*parts[:place], wrong, *parts[place + 1 :]]
                verdict = check.verdict(changed[0] if len(parts) == 1 else changed, ours=True)
                assert not verdict.passed, (operation, place)


def test_correctness_check_fails_wrong_topk_indices():
    problem = make(TINY["topk"])
    check, (scores, indices) = CorrectnessCheck(problem), bench.ours._topk(problem)()
    worse = indices.clone()
    worse[:, -1] = torch.tensor([next(m for m in range(70) if m not in row) for row in indices.tolist()])
    exact = check.expected[0].value.float()
    assert not check.verdict((exact.gather(1, worse), worse), ours=True).passed
    twice = indices[:, [0, 0, 1]]
    assert not check.verdict((scores[:, [0, 0, 1]], twice), ours=True).passed


def test_correctness_check_fails_wrong_ranks():
    problem = make(TINY["rank"])
    check, (indices, ranks) = CorrectnessCheck(problem), bench.ours._rank(problem)()
    assert check.verdict((indices, ranks), ours=True).passed
    assert not check.verdict((indices, (ranks + 1).clamp(max=71)), ours=True).passed
    assert not check.verdict((indices.roll(1, 0), ranks), ours=True).passed
    assert not check.verdict((indices[:, :2], ranks[:, :2]), ours=True).passed


def test_correctness_check_fails_shifted_ranks_among_many_references():
    problem = make(Case("", "rank", 8, 40_000, 256, k=10))
    check, (indices, ranks) = CorrectnessCheck(problem), bench.ours._rank(problem)()
    assert check.verdict((indices, ranks), ours=True).passed
    for shift in (-10, 10):
        assert not check.verdict((indices, (ranks + shift).clamp(0, 39_999)), ours=True).passed


def test_correctness_check_accepts_row_sums_in_place_of_scores():
    problem = make(TINY["score"])
    scores = bench.ours._score(problem)()
    assert CorrectnessCheck(problem).verdict(RowSums(scores.sum(1)), ours=False).passed
    assert not CorrectnessCheck(problem).verdict(RowSums(scores.sum(1) * 1.001), ours=False).passed


def test_nothing_is_timed_if_our_result_is_wrong(monkeypatch):
    case = TINY["score"]
    rows = [
        Competitor("dissim_kernels", lambda p: lambda: torch.zeros(6, 70), {"score": 1}, ours=True),
        Competitor("right", bench.ours._score, {"score": 1}),
    ]
    monkeypatch.setattr("bench.run.competitors_of", lambda case: rows)
    result = run(case, TimeBudget(1, 1e-3), 1, "plain", str)
    assert [(row.wrong, row.seconds) for row in result.rows] == [(True, []), (False, [])]
    assert "wrong by" in report.table(result)


# --- time, memory, peaks ------------------------------------------------------------------------------------------


def test_rounds_interleave_and_rotate_the_first_call():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = measure.interleave(calls, rounds=3, min_round_s=0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_peak_memory_includes_temporaries():
    measure.peak_extra_bytes(lambda: torch.ones(16).sum())  # load what is loaded at the first use
    seen = measure.peak_extra_bytes(lambda: torch.ones(4 << 20).sum())
    if seen is None:
        pytest.skip("this system does not let a process reset its peak of resident memory")
    assert 15 << 20 <= seen < 24 << 20  # pages that were resident before do not count


def test_peaks_are_compiled_with_the_library_flags_and_count_their_work(monkeypatch):
    isa = torch.ops.dissim_native.isa()
    assert "-O3" in peak.flags(isa)
    monkeypatch.setattr(peak, "ELEMENTS", 1 << 20)
    monkeypatch.setattr(peak, "MEMORY_BYTES", 1 << 20)
    tasks, library = 2 * peak.TASKS, peak.load(isa)
    case = Case("of two results", "hinge_backward", 20, 100, 16)
    with peak.peak_calls(isa, 2, {*peak.ARITHMETIC, "memory", "pages"}, case) as calls:
        assert calls["memory"]() == 1 << 20 and calls["pages"]() == 4 * (20 + 100) * 16
        for name in peak.ARITHMETIC:
            shape = (20, 100, 16) if name == "block" else ()
            step = getattr(library, f"peak_{name}")(1, *shape)  # each task runs a whole number of steps
            assert calls[name]() == tasks * step * ((1 << 20) // peak.TASKS // step) > 0


# --- the report ---------------------------------------------------------------------------------------------------


def test_report_contains_timed_and_untimed_rows(tmp_path):
    case = CASES[0]
    rows = [
        Measurement("dissim_kernels", True, False, 4096, case.elements, 1e-7, 1 << 20, seconds=[0.2, 0.1, 0.3]),
        Measurement("fast", False, True, 64, case.elements // 64, 2e-7, None, seconds=[0.01] * 3),
        Measurement("absent", False, False, 4096, case.elements, reason="not installed: absent"),
    ]
    peaks = {
        "score": case.elements / 0.1,
        "tile": case.elements / 0.13,
        "block": case.elements / 0.135,
        "pages": 4 * 4096**2 / 0.02,
        "memory": case.bytes / 0.01,
    }
    facts = {"cpu": "c", "cores": 2, "threads": 2, "isa": "avx2", "isas": "avx2", "torch": "2", "torch_isa": "AVX2",
             "python": "3", "compiler": "c++", "system": "s", "packages": {}, "commit": "abc", "load_before": 1.9,
             "load_after": 0.1, "seconds": 1, "quick": True, "datetime": "now", "command": "c"}  # fmt: skip
    paths = report.write([CaseResult(case, rows, peaks)], facts, tmp_path)
    assert [path.name for path in paths] == ["cpu.json", "cpu.md", "cpu.png"]
    text = (tmp_path / "cpu.md").read_text()
    assert "not installed: absent" in text and "64 queries" in text and "the machine was busy" in text
    assert "fast: 13.4" in text and "| 42.9" in text  # the best other; ours by its median
    cells = [cell.strip() for cell in text.split("| page faults")[1].splitlines()[2].split("|")]
    call, arithmetic, tile, block, page_faults, other, memory = cells[2:9]
    assert (call, arithmetic, tile, block, page_faults) == ("200", "100", "30", "5", "20")
    assert (other, memory) == ("45", "10")
    document = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["stats"]["median"] for row in document["benchmarks"]] == [0.2, 0.01]
    assert document["not_timed"][0]["name"] == "absent"
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert report.to_markdown(*report.read(tmp_path / "cpu.json")) == text


@pytest.fixture
def small_clustered_search(tmp_path, monkeypatch):
    """Runs bench.clustered_search on small sizes; returns its results and its table."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(clustered_search, "ROUNDS", 1)
    monkeypatch.setattr(clustered_search, "MIN_ROUND_S", 0.001)
    monkeypatch.setattr(clustered_search, "MIN_RANDOM_ROUND_S", 0.001)
    sizes = ["--rows", "3000", "--queries", "20", "--dim", "40", "--k", "5", "--classes", "10"]

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["clustered_search", *sizes, *options, "--output", str(tmp_path)])
        clustered_search.main()
        results = json.loads((tmp_path / "clustered_search.json").read_text())
        return results, (tmp_path / "clustered_search.md").read_text()

    return run


def test_clustered_search_measures_what_it_checked(small_clustered_search):
    results, text = small_clustered_search("--random-rows", "2000")
    assert [(row["queries"], row["rows"]) for row in results["random_rows"]] == [(1, 2000), (256, 2000)]
    assert all(row["ratio"] > 0 for row in results["random_rows"])
    tables = list(results["tables"].values())
    assert all(table["rows"]["HNSW"]["recall"] >= clustered_search.RECALL for table in tables)
    clusters, low_dimensional = (table["rows"]["clusters"]["scored"] for table in tables)
    assert clusters < 1000 and low_dimensional == 3000
    assert text.count("| FAISS HNSW, efSearch ") == 2 and "none reached" not in text


def test_clustered_search_says_if_no_setting_reaches_the_recall(small_clustered_search, monkeypatch):
    monkeypatch.setattr(clustered_search, "RECALL", 0.999999)
    monkeypatch.setattr(clustered_search, "EF_SEARCH", [1, 2])
    _, text = small_clustered_search("--random-rows")
    assert "| FAISS HNSW, efSearch 2 (none reached 0.999999) |" in text


def test_clustered_search_writes_no_wrong_result(small_clustered_search, monkeypatch, tmp_path):
    def search(*arguments, clusters=None, **options):
        found = fused_dissim_topk(*arguments, clusters=clusters, **options)
        return found if clusters is None else found._replace(scores=found.scores + 1)

    monkeypatch.setattr(clustered_search, "fused_dissim_topk", search)
    with pytest.raises(SystemExit, match="FAILED the correctness check: 20 x 3000 rows"):
        small_clustered_search()
    assert not list(tmp_path.iterdir())


def test_compare_reports_ratio_and_bit_identity():
    """This tree compared with itself, with a limit that every ratio meets and one that none meets."""
    command = [sys.executable, "-m", "bench.compare", str(ROOT), "--only", "small 128", "--rounds", "2"]
    done = subprocess.run([*command, "--limit", "100"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "identical" in done.stdout, done.stdout + done.stderr
    done = subprocess.run([*command, "--limit", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "slower than 0.0 times" in done.stdout


def test_index_speed_writes_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(index_speed, "ROUNDS", 2)
    monkeypatch.setattr(index_speed, "MIN_ROUND_S", 0)
    monkeypatch.setattr(index_speed, "ADDED_ROWS", 10_000)
    sizes = ["--open-rows", "12000", "--open-dim", "8", "--search-rows", "12000", "--search-dim", "8", "--k", "3"]
    monkeypatch.setattr(sys, "argv", ["index_speed", *sizes, "--folder", str(tmp_path), "--output", str(tmp_path)])
    assert index_speed.main() == 0
    document = json.loads((tmp_path / "index_speed.json").read_text())
    mib = {name: row["mib"] for name, row in document["open"].items()}
    assert mib["open with codes"] == mib["same bytes, with codes"] > mib["open"] == mib["same bytes"] > 0
    text = (tmp_path / "index_speed.md").read_text()
    assert "## Open 12,000 x 8" in text and "| clusters |" in text and "with codes" in text
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []  # the indexes are deleted
