"""`make gpu` without a GPU: parts, time limits, partial results, table, exit status; and tests/on_device.py."""

import json
import os
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from on_device import move, moved

from bench import files, gpu_report, gpu_session, gpu_tests
from bench.cases import COSTS, GPU_CASES, Case
from bench.correctness import CorrectnessCheck
from bench.data_sheets import data_sheet
from bench.gpu_session import Failed, Part
from bench.processes import TimedOut, execute, last_line
from bench.registry import ALL_QUERIES, Competitor, competitors_of
from dissim_kernels import dispatch, fused_dissim_hinge_loss, fused_dissim_score, fused_dissim_topk, testing

FACTS = {"device": "NVIDIA H100 80GB HBM3", "capability": "9.0", "memory_gib": 79.1, "driver": "580", "torch": "2.11",
         "cuda": "13.0", "triton": "3.6.0", "nvcc": "13.0", "python": "3.12", "commit": "abc"}  # fmt: skip


# --- parts --------------------------------------------------------------------------------------------------------


def test_failed_part_sets_the_exit_status_and_stops_no_other_part(tmp_path):
    ran = []

    def part(name, error=None):
        def run(results, seconds, facts):
            ran.append(name)
            if error:
                raise error
            return f"{name} of {facts['device']}"

        return Part(name, 10, run)

    parts = [part("build", Failed("no nvcc")), part("tests", KeyError("a fault")), part("bench")]
    assert gpu_session.run(parts, tmp_path, FACTS) == 1
    assert ran == ["build", "tests", "bench"]
    rows = (tmp_path / "summary.txt").read_text().splitlines()
    assert "FAILED: no nvcc" in rows[0] and "FAILED: KeyError: 'a fault'" in rows[1] and "ok: bench of" in rows[2]
    assert gpu_session.run(parts[2:], tmp_path, FACTS) == 0


def test_part_gets_its_time_limit_or_the_remaining_time(tmp_path, monkeypatch):
    given, now = [], [100.0]

    def run(results, seconds, facts):
        given.append(seconds)
        now[0] += 0.25
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(gpu_session, "time", SimpleNamespace(monotonic=lambda: now[0]))
        gpu_session.run([Part("a", 5, run), Part("b", 90, run)], tmp_path, FACTS, total=60)
    assert given == [5, 59.75]
    assert sum(part.seconds for part in gpu_session.PARTS[:2]) + 140 <= gpu_session.TOTAL <= 480 - 10


def test_session_without_a_gpu_exits_with_one_sentence(tmp_path, monkeypatch, capfd):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr("sys.argv", ["gpu", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^make gpu: torch .* (was built for the CPU only|finds no GPU).*\.$"):
        gpu_session.main()
    assert not list(tmp_path.iterdir())


def test_build_targets_the_installed_gpu_and_reports_its_last_line(tmp_path, monkeypatch):
    commands = []

    def fake(command, log, seconds, settings=None):
        commands.append((command, settings))
        log.write_text("FORCE_CUDA: expected nvcc, found none.\n" if "setup.py" in command else "None\n")
        return status

    monkeypatch.setattr(gpu_session, "execute", fake)
    status = 0
    assert gpu_session.build(tmp_path, 9, FACTS) == "CUDA kernels for capability 9.0"
    assert commands[0][0][1:] == ["setup.py", "build_ext", "--inplace"] and commands[0][0][0] == sys.executable
    assert commands[0][1] == {"TORCH_CUDA_ARCH_LIST": "9.0", "FORCE_CUDA": "1"}
    status = 1
    with pytest.raises(Failed, match="expected nvcc, found none"):
        gpu_session.build(tmp_path, 9, FACTS)


# --- processes ----------------------------------------------------------------------------------------------------


def test_timed_out_command_is_killed_with_its_children(tmp_path):
    child = f"import time; time.sleep(6); open({str(tmp_path / 'child')!r}, 'w')"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    with pytest.raises(TimedOut, match=r"not done within 3 s \(log\)"):
        execute([sys.executable, "-c", parent], tmp_path / "log", 3)
    assert time.monotonic() - begin < 5.5 and last_line(tmp_path / "log") == "begun"
    time.sleep(4)
    assert not (tmp_path / "child").exists()


def test_execute_passes_the_environment_and_returns_the_status(tmp_path):
    code = "import os, sys; print(os.environ['SETTING']); sys.exit(7)"
    assert execute([sys.executable, "-c", code], tmp_path / "new" / "log", 20, {"SETTING": "this"}) == 7
    assert (tmp_path / "new" / "log").read_text() == "this\n"


def test_result_files_are_replaced_atomically(tmp_path, monkeypatch):
    files.replace(tmp_path / "new" / "file", "first")
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        files.replace(tmp_path / "new" / "file", "second")
    assert (tmp_path / "new" / "file").read_text() == "first"


# --- tests --------------------------------------------------------------------------------------------------------

SUITE = """
import pytest, time
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_skipped(): pytest.skip("no second device")
def test_slow(): time.sleep(60)
"""


def test_failed_and_skipped_tests_are_reported(tmp_path):
    path = tmp_path / "test_suite.py"
    path.write_text(SUITE)
    chosen = {name: [str(path), "-k", name] for name in ("right or wrong", "test_skipped", "nothing")}
    counts, bad = gpu_tests.run(tmp_path / "tests", 300, chosen)
    assert counts == {"passed": 1, "failure": 1, "skipped": 1}
    assert "right or wrong: test_wrong: failure: assert 1 == 2" in bad[0]
    assert "test_skipped: test_skipped: skipped: no second device" in bad[1] and len(bad) == 2
    counts, bad = gpu_tests.run(tmp_path / "tests", 1, {"slow": [str(path), "-k", "slow"]})
    assert counts == {} and bad == ["slow: not done within 1 s (slow.log)"]


def test_tests_that_fail_make_the_part_fail(tmp_path, monkeypatch):
    found = Counter(passed=3), []
    monkeypatch.setattr(gpu_session, "run_tests", lambda folder, seconds: found)
    assert gpu_session.test(tmp_path, 9, FACTS) == "3 passed"
    found = Counter(passed=3, failure=1), ["cuda: test_one: failure: assert"]
    with pytest.raises(Failed, match=r"3 passed, 1 failure; 1 lines in tests\.txt, first: cuda: test_one"):
        gpu_session.test(tmp_path, 9, FACTS)
    assert (tmp_path / "tests.txt").read_text() == "cuda: test_one: failure: assert\n"
    found = Counter(), []
    with pytest.raises(Failed, match="no test was found"):
        gpu_session.test(tmp_path, 9, FACTS)


def test_selections_cover_every_dtype_once():
    chosen = gpu_tests.selections()
    assert all((gpu_tests.ROOT / arg).exists() for row in chosen.values() for arg in row if arg.startswith("tests/"))
    for name in ("x[float16-triton]", "x[torch.bfloat16-triton]", "float32", "float64", "x[3-triton]"):
        words = {"float16": "float16" in name, "bfloat16": "bfloat16" in name, "float": "float" in name,
                 "float32": "float32" in name, "float64": "float64" in name}  # fmt: skip
        assert sum(eval(which, {}, words) for which in gpu_tests.TYPES.values()) == 1


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_moved_tensors_keep_strides_and_alignment(layout):
    tensor = testing.with_layout(torch.arange(24.0).view(4, 6), layout)
    for given in (tensor, tensor[1:, 2:], tensor[:0], tensor[0, 0]):
        there = move(given, "cpu")
        assert torch.equal(there, given) and there.stride() == given.stride()
        assert there.data_ptr() != given.data_ptr() or not given.numel()
        assert given.numel() == 0 or there.storage_offset() % 16 == given.storage_offset() % 16


def test_moved_backend_runs_every_operation(monkeypatch):
    reference = dispatch.BACKENDS["reference"]
    monkeypatch.setitem(dispatch.BACKENDS, "moved", moved(reference, "cpu"))
    inputs, sides = testing.tied_inputs(5, 9, 4), (torch.arange(5) % 2, torch.arange(9) % 2)
    for call in (fused_dissim_score, lambda *x, backend: fused_dissim_topk(*x, k=3, backend=backend)[1],
                 lambda *x, backend: fused_dissim_hinge_loss(*x, *sides, backend=backend)):  # fmt: skip
        assert torch.equal(call(*inputs, backend="moved"), call(*inputs, backend="reference"))


# --- the benchmark ------------------------------------------------------------------------------------------------

#: A stand-in for bench/gpu.py: writes the line of its case and ends as the settings say.
CASE = """
import json, pathlib, sys
name, folder, *without = sys.argv[1:]
folder = pathlib.Path(folder)
if {stops!r} == name:
    raise RuntimeError("no driver")
(folder / "trying").write_text("KeOps")
print(name, without)
if {breaks!r} == name and not without:
    sys.exit(139)
row = dict(name="dissim_kernels, cuda", ours=True, one_sign=False, queries=4096, elements=10**12, error=1e-7,
           memory=1 << 20, reason=None, wrong=False, seconds=[0.02, 0.01, 0.03], replayed=True, of_peak=0.5)
peer = dict(row, name="torch.compile", ours=False, seconds=[0.1] * 3, replayed=False, queries=256, of_peak=None)
absent = dict(row, name="KeOps", ours=False, seconds=[], reason="not installed: pykeops")
case = dict(name=name, operation="score", queries=4096, references=9, dim=5, dtype="float32", k=10, active=1.0)
with (folder / "gpu.jsonl").open("a") as file:
    file.write(json.dumps(dict(case=case, device="d", rows=[row, peer, absent], seconds=1.0)) + "\\n")
sys.exit(3 if {wrong!r} == name else 0)
"""


@pytest.fixture
def cases(tmp_path, monkeypatch):
    """A function that replaces the processes of the benchmark by quick ones."""

    def prepare(breaks=None, wrong=None, stops=None):
        script = tmp_path / "case.py"
        script.write_text(CASE.format(breaks=breaks, wrong=wrong, stops=stops))

        def run(command, *arguments):
            assert command[1:3] == ["-m", "bench.gpu"]
            return execute([command[0], str(script), *command[3:]], *arguments)

        monkeypatch.setattr(gpu_session, "execute", run)
        monkeypatch.setattr("bench.cases.GPU_CASES", GPU_CASES[:3])

    return prepare


def test_results_are_written_after_each_case(cases, tmp_path):
    cases()
    assert gpu_session.measure(tmp_path, 60, FACTS) == "3 cases"
    text = (tmp_path / "gpu.md").read_text()
    assert "NVIDIA H100 80GB HBM3 (capability 9.0" in text and text.count("\n## ") == 3
    row = next(line for line in text.splitlines() if line.startswith("| **dissim_kernels, cuda**"))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells == ["20", "10", "50,000", "50%", "1.00", "1.0 MiB", "1.0e-07", "all", "3 graph"]
    assert "| 256 queries | 3 calls" in text and "not installed: pykeops" in text
    last = gpu_report.short(tmp_path / "gpu.jsonl").splitlines()
    assert len(last) == 5 and "cuda" in last[2] and "torch.compile" in last[2] and "5.00" in last[2]
    assert [json.loads(line)["case"]["name"] for line in (tmp_path / "gpu.jsonl").open()] == [
        case.name for case in GPU_CASES[:3]
    ]


def test_skipped_cases_are_named_when_time_is_up(cases, tmp_path, monkeypatch):
    cases()
    measure_case = gpu_session.measure_case

    def no_time_after_the_first_case(*arguments):
        monkeypatch.setattr(gpu_session, "MIN_CASE_S", 61)
        return measure_case(*arguments)

    monkeypatch.setattr(gpu_session, "measure_case", no_time_after_the_first_case)
    summary = gpu_session.measure(tmp_path, 60, FACTS)
    assert summary == f"1 cases, no time for {GPU_CASES[1].name}, {GPU_CASES[2].name}"
    assert f"no time was left: {GPU_CASES[1].name}, {GPU_CASES[2].name}" in (tmp_path / "gpu.md").read_text()


def test_competitor_that_ends_the_process_is_skipped_in_a_second_try(cases, tmp_path):
    cases(breaks=GPU_CASES[1].name)
    assert gpu_session.measure(tmp_path, 60, FACTS) == "3 cases"
    assert f"{GPU_CASES[1].name} ['--without=KeOps']" in (tmp_path / "gpu.log").read_text()


def test_process_that_fails_at_start_reports_its_last_line(cases, tmp_path):
    cases(stops=GPU_CASES[0].name)
    with pytest.raises(Failed, match=f"{GPU_CASES[0].name}: its inputs: .* status 1, RuntimeError: no driver"):
        gpu_session.measure(tmp_path, 60, FACTS)


def test_untimed_result_of_ours_fails_the_part_but_not_other_cases(cases, tmp_path):
    cases(wrong=GPU_CASES[0].name)
    with pytest.raises(Failed, match=f"^3 cases; {GPU_CASES[0].name}: one of ours was not timed"):
        gpu_session.measure(tmp_path, 60, FACTS)
    assert "**Failed**: " + GPU_CASES[0].name in (tmp_path / "gpu.md").read_text()


def test_every_case_has_both_backends_and_a_competitor():
    import bench.peers.on_gpu  # noqa: F401

    assert len({case.name for case in GPU_CASES}) == len(GPU_CASES)
    for case in GPU_CASES:
        names = {row.name: row.ours for row in competitors_of(case, "cuda")}
        assert names["dissim_kernels, cuda"] and not all(names.values()), case.name
        assert "dissim_kernels, triton" in names or case.operation == "quantized_topk"
        assert case.operation in COSTS


@pytest.mark.parametrize("operation", COSTS)
def test_torch_competitors_pass_the_correctness_check(operation):
    """On the CPU, by the same functions, for every operation of the GPU cases."""
    import bench.peers.on_gpu  # noqa: F401
    from bench.problem import make

    problem = make(Case("tiny", operation, 8, 200, 24, k=3, active=0.1))
    found = [row for row in competitors_of(problem.case, "cuda") if row.name.startswith("torch.cdist")]
    assert len(found) == (operation in {case.operation for case in GPU_CASES})
    assert all(CorrectnessCheck(problem).verdict(row.prepare(problem)(), ours=False).passed for row in found)


def test_data_sheets_are_found_by_device_name():
    h100 = data_sheet("NVIDIA H100 80GB HBM3")
    assert h100.peaks["score"] == pytest.approx(67e12 / 4) and h100.peaks["memory"] == 3.35e12
    assert data_sheet("NVIDIA GH200 480GB") is None and data_sheet("Tesla T4") is None


@pytest.fixture
def measured(monkeypatch):
    """A function that measures competitors on a tiny case by bench/gpu.py, on the CPU in place of a GPU."""
    from bench import gpu
    from bench.problem import make

    case = Case("tiny", "score", 64, 30, 8)
    monkeypatch.setattr(gpu, "make", lambda case, device: make(case))
    monkeypatch.setattr(gpu, "peak_extra_bytes", lambda call: 1 << 20)
    monkeypatch.setattr(gpu, "interleave", lambda calls: {name: [1.0, 3.0, 2.0] for name in calls})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: FACTS["device"])

    def run(without=(), try_capture=lambda call: (None, None), **calls):
        rows = [
            Competitor(name, prepare, {"score": ALL_QUERIES}, ours=name.startswith("ours"))
            for name, prepare in calls.items()
        ]
        monkeypatch.setattr(gpu, "competitors_of", lambda case, device: rows)
        monkeypatch.setattr(gpu, "try_capture", try_capture)
        tried = []
        line = gpu.measure(case, list(without), tried.append)
        assert json.loads(json.dumps(line)) == line
        return {row["name"]: row for row in line["rows"]}, tried

    return run


def right(problem):
    return lambda: fused_dissim_score(problem.query, problem.reference, problem.weight, problem.bias)


def test_wrong_and_failed_competitors_are_not_timed(measured):
    def wrong(problem):
        return lambda: right(problem)() * 1.001

    def broken(problem):
        raise RuntimeError("no image for this device\nand more")

    rows, tried = measured(ours=right, ours_wrong=wrong, ours_broken=broken, peer=right)
    assert tried == ["ours", "ours_wrong", "ours_broken", "peer", "its rounds"]
    assert rows["ours"]["seconds"] == rows["peer"]["seconds"] == [1.0, 3.0, 2.0]
    assert not rows["ours_wrong"]["seconds"] and "wrong by" in rows["ours_wrong"]["reason"]
    assert rows["ours_broken"]["reason"] == "failed: RuntimeError: no image for this device"
    bound = data_sheet(FACTS["device"]).peaks["memory"] / (4 * (64 * 8 + 30 * 8 + 64 * 30)) * 2
    assert rows["ours"]["of_peak"] == pytest.approx(1 / bound) and rows["ours_wrong"]["of_peak"] is None


def test_replayed_graphs_are_checked(measured):
    def try_capture(call):
        result = call()
        return lambda: result.mul_(factor), result

    factor = 1.0
    assert measured(ours=right, try_capture=try_capture)[0]["ours"]["replayed"]
    factor = 1.001
    row = measured(ours=right, try_capture=try_capture)[0]["ours"]
    assert not row["seconds"] and "when replayed as a CUDA graph" in row["reason"]


def test_competitors_out_of_memory_run_on_fewer_queries(measured, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def out_of_memory_above(max_queries):
        def prepare(problem):
            if len(problem.query) > max_queries:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return right(problem)

        return prepare

    rows, _ = measured(peer=out_of_memory_above(4), ours=right, other=out_of_memory_above(0))
    assert (rows["peer"]["queries"], rows["peer"]["elements"]) == (4, 4 * 30 * 8) and rows["peer"]["seconds"]
    assert rows["other"]["reason"] == "out of memory even for 1 queries" and rows["ours"]["queries"] == 64


def test_skipped_competitor_has_a_row_with_the_reason(measured):
    rows, tried = measured(["ours_bad"], ours_bad=right, ours=right)
    assert "ended the process" in rows["ours_bad"]["reason"] and tried == ["ours", "its rounds"]
