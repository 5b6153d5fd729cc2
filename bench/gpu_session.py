"""`make gpu`: uses a few minutes on a machine with a GPU. Builds for its card, tests, measures and prints a table.

It installs nothing and uses what Python finds: torch, Triton, nvcc, pytest, hypothesis and what setup.py needs. Each
part has a time limit, and all parts together have eight minutes. A part that fails sets the exit status but does not
stop the next one. Results are written as soon as they exist:

environment.json   device, driver, torch, CUDA, Triton, nvcc, commit
build.log          the output of setup.py
tests/, tests.txt  log and JUnit report of each selection of tests; a line for each test that did not pass
gpu.jsonl, gpu.md  the benchmark, written after each case; gpu.log: its output
summary.txt        the table that is printed last
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import files
from .gpu_tests import run as run_tests
from .processes import ROOT, TimedOut, execute, last_line

#: Seconds of all parts together.
TOTAL = 470
#: Seconds. No case starts with less time left, and none may take longer, because a kernel may never end.
MIN_CASE_S, MAX_CASE_S = 20, 80
#: The exit status of bench/gpu.py if the case was measured without one of our backends.
OURS_FAILED = 3


class Failed(Exception):
    """A part failed; the message says how."""


@dataclass(frozen=True)
class Part:
    """run(results, seconds, facts) returns a line for the summary within `seconds`, or raises Failed."""

    name: str
    seconds: float
    run: Callable[[Path, float, dict], str]


def build(results: Path, seconds: float, facts: dict) -> str:
    """Builds the library in this checkout, with CUDA kernels for the installed GPU only."""
    log, end = results / "build.log", time.monotonic() + seconds
    log.unlink(missing_ok=True)
    environment = {"TORCH_CUDA_ARCH_LIST": facts["capability"], "FORCE_CUDA": "1"}
    if execute([sys.executable, "setup.py", "build_ext", "--inplace"], log, seconds, environment):
        raise Failed(f"{last_line(log)} (build.log)")
    script = "import dissim_kernels; print(dissim_kernels.unavailable_backends().get('cuda'))"
    execute([sys.executable, "-c", script], log, end - time.monotonic())
    if (reason := last_line(log)) != "None":
        raise Failed(f"built, but the backend cuda cannot run: {reason}")
    return f"CUDA kernels for capability {facts['capability']}"


def test(results: Path, seconds: float, facts: dict) -> str:
    counts, bad = run_tests(results / "tests", seconds)
    files.replace(results / "tests.txt", "".join(f"{line}\n" for line in bad))
    found = ", ".join(f"{number} {what}" for what, number in counts.items()) or "none ran"
    if bad or not counts["passed"]:
        raise Failed(f"{found}; {len(bad)} lines in tests.txt, first: {bad[0] if bad else 'no test was found'}")
    return found


def measure(results: Path, seconds: float, facts: dict) -> str:
    """Measures every case in its own process, as long as there is time."""
    from . import gpu_report
    from .cases import GPU_CASES

    end, lines = time.monotonic() + seconds, results / "gpu.jsonl"
    failed, skipped = [], [case.name for case in GPU_CASES]
    for old in (lines, results / "gpu.log"):
        old.unlink(missing_ok=True)
    for case in GPU_CASES:
        if end - time.monotonic() < MIN_CASE_S:
            break
        skipped.remove(case.name)
        if problem := measure_case(case.name, results, end):
            failed.append(f"{case.name}: {problem}")
        files.replace(results / "gpu.md", gpu_report.document(lines, facts, skipped, failed))
    summary = f"{len(GPU_CASES) - len(skipped)} cases" + (f", no time for {', '.join(skipped)}" if skipped else "")
    if failed:
        raise Failed(f"{summary}; {'; '.join(failed)} (gpu.log)")
    return summary


def measure_case(name: str, results: Path, end: float) -> str | None:
    """Adds the line of the case to gpu.jsonl. Returns the error, or None.

    A competitor that ends the process, or does not end, is skipped in the next try.
    """
    without: list[str] = []
    log = results / "gpu.log"
    while True:
        (results / "trying").write_text("its inputs")
        command = [sys.executable, "-m", "bench.gpu", name, str(results), *(f"--without={w}" for w in without)]
        try:
            status = execute(command, log, min(MAX_CASE_S, end - time.monotonic()))
            ending = f"ended with status {status}, {last_line(log)[:150]}"
        except TimedOut:
            status, ending = None, "did not end"
        if status in (0, OURS_FAILED):
            return "one of ours was not timed" if status else None
        culprit = (results / "trying").read_text()
        if culprit.startswith("its ") or end - time.monotonic() < MIN_CASE_S:
            return f"{culprit}: the process {ending}"
        without.append(culprit)


#: The parts in order. The benchmark has the rest of TOTAL.
PARTS = (Part("build", 160, build), Part("tests", 170, test), Part("bench", TOTAL, measure))


def run(parts: Sequence[Part], results: Path, facts: dict, total: float = TOTAL) -> int:
    """Runs the parts in order and returns the exit status. summary.txt is written after each part."""
    begin, failed, rows = time.monotonic(), False, []
    for part in parts:
        started = time.monotonic()
        seconds = min(part.seconds, begin + total - started)
        print(f"{part.name}: at most {seconds:.0f} s", flush=True)
        try:
            outcome = "ok: " + part.run(results, seconds, facts)
        except (Failed, TimedOut) as reason:
            outcome, failed = f"FAILED: {reason}", True
        except Exception as error:  # a bug of one part must not stop the next ones
            outcome, failed = f"FAILED: {type(error).__name__}: {error}", True
        rows.append(f"{part.name}, {time.monotonic() - started:.0f} s: {outcome}")
        files.replace(results / "summary.txt", "\n".join(rows) + "\n")
    return int(failed)


def environment(results: Path) -> dict:
    """Describes the GPU in a process that frees its memory before the parts run. Exits if there is no GPU."""
    command = [sys.executable, "-m", "bench.gpu_environment"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    files.replace(results / "environment.json", done.stdout)
    return json.loads(done.stdout)


def main() -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    results = options.results.absolute()
    facts = environment(results)
    from .gpu_environment import environment_summary
    from .gpu_report import short

    print(environment_summary(facts), flush=True)
    status = run([part for part in PARTS if part.name in options.parts], results, facts)
    table = f"{environment_summary(facts)}\n{(results / 'summary.txt').read_text()}"
    if "bench" in options.parts:
        table += f"\n{short(results / 'gpu.jsonl')}\n"
    files.replace(results / "summary.txt", table)
    print(table)
    return status


if __name__ == "__main__":
    sys.exit(main())
