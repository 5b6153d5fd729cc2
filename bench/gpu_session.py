"""`make gpu`: the few minutes that a machine with a GPU is there. Build for its card, test, measure, print a table.

It takes the Python that is there and installs nothing: torch, Triton, nvcc, pytest, hypothesis and what setup.py
needs. Each part has a time limit and all together have eight minutes. A part that fails does not stop the next, but
the exit status tells. What is known is written at once to the folder of results:

environment.json   device, driver, torch, CUDA, Triton, nvcc, commit
build.log          what setup.py printed
tests/, tests.txt  log and JUnit report of each selection of tests; a line for each test that did not pass
gpu.jsonl, gpu.md  the benchmark, after each case; gpu.log: what it printed
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
#: No case starts with less time left; none may take longer, for a kernel may never end.
LEAST_CASE, MOST_CASE = 20, 80
#: The exit status of bench/gpu.py where the case was measured, but one of ours was not.
OURS_FAILED = 3


class Failed(Exception):
    """A part did not do what it is for; the message says what."""


@dataclass(frozen=True)
class Part:
    """run(results, seconds, facts) has so many seconds and returns what the table says; raises Failed."""

    name: str
    seconds: float
    run: Callable[[Path, float, dict], str]


def build(results: Path, seconds: float, facts: dict) -> str:
    """The library in this checkout, with CUDA kernels for the present card alone."""
    log, end = results / "build.log", time.monotonic() + seconds
    log.unlink(missing_ok=True)
    wanted = {"TORCH_CUDA_ARCH_LIST": facts["capability"], "FORCE_CUDA": "1"}
    if execute([sys.executable, "setup.py", "build_ext", "--inplace"], log, seconds, wanted):
        raise Failed(f"{last_line(log)} (build.log)")
    use = "import dissim_kernels; print(dissim_kernels.unavailable_backends().get('cuda'))"
    execute([sys.executable, "-c", use], log, end - time.monotonic())
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
    """Every case in a process of its own, while there is time."""
    from . import gpu_report
    from .cases import GPU_CASES

    end, lines = time.monotonic() + seconds, results / "gpu.jsonl"
    failed, left_out = [], [case.name for case in GPU_CASES]
    for old in (lines, results / "gpu.log"):
        old.unlink(missing_ok=True)
    for case in GPU_CASES:
        if end - time.monotonic() < LEAST_CASE:
            break
        left_out.remove(case.name)
        if problem := measure_case(case.name, results, end):
            failed.append(f"{case.name}: {problem}")
        files.replace(results / "gpu.md", gpu_report.document(lines, facts, left_out, failed))
    said = f"{len(GPU_CASES) - len(left_out)} cases" + (f", no time for {', '.join(left_out)}" if left_out else "")
    if failed:
        raise Failed(f"{said}; {'; '.join(failed)} (gpu.log)")
    return said


def measure_case(name: str, results: Path, end: float) -> str | None:
    """Adds the case's line to gpu.jsonl. Who ends the process, or does not end, is left out of a second try. Returns
    what went wrong, or None."""
    without: list[str] = []
    log = results / "gpu.log"
    while True:
        (results / "trying").write_text("its inputs")
        command = [sys.executable, "-m", "bench.gpu", name, str(results), *(f"--without={w}" for w in without)]
        try:
            status = execute(command, log, min(MOST_CASE, end - time.monotonic()))
            ending = f"ended with status {status}, {last_line(log)[:150]}"
        except TimedOut:
            status, ending = None, "did not end"
        if status in (0, OURS_FAILED):
            return "one of ours was not timed" if status else None
        culprit = (results / "trying").read_text()
        if culprit.startswith("its ") or end - time.monotonic() < LEAST_CASE:
            return f"{culprit}: the process {ending}"
        without.append(culprit)


#: In this order. The benchmark has whatever the others leave of TOTAL.
PARTS = (Part("build", 160, build), Part("tests", 170, test), Part("bench", TOTAL, measure))


def run(parts: Sequence[Part], results: Path, facts: dict, total: float = TOTAL) -> int:
    """Runs the parts one after another; the exit status. The table so far is in summary.txt after each."""
    begin, failed, rows = time.monotonic(), False, []
    for part in parts:
        started = time.monotonic()
        seconds = min(part.seconds, begin + total - started)
        print(f"{part.name}: at most {seconds:.0f} s", flush=True)
        try:
            said = "ok: " + part.run(results, seconds, facts)
        except (Failed, TimedOut) as reason:
            said, failed = f"FAILED: {reason}", True
        except Exception as error:  # a fault of this file must not cost the parts that follow
            said, failed = f"FAILED: {type(error).__name__}: {error}", True
        rows.append(f"{part.name}, {time.monotonic() - started:.0f} s: {said}")
        files.replace(results / "summary.txt", "\n".join(rows) + "\n")
    return int(failed)


def environment(results: Path) -> dict:
    """Facts of the GPU, from a process that ends before the parts need its memory; ends here where there is none."""
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
    from .gpu_environment import line
    from .gpu_report import short

    print(line(facts), flush=True)
    status = run([part for part in PARTS if part.name in options.parts], results, facts)
    table = f"{line(facts)}\n{(results / 'summary.txt').read_text()}"
    if "bench" in options.parts:
        table += f"\n{short(results / 'gpu.jsonl')}\n"
    files.replace(results / "summary.txt", table)
    print(table)
    return status


if __name__ == "__main__":
    sys.exit(main())
