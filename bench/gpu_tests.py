"""The tests that run on a GPU, several at a time: those only for GPUs, and those that every backend passes.

The latter run with tests/on_device.py, which copies the tensors of the CPU tests to the GPU and back. Triton takes
most of the time, because it compiles about 120 kernels for the edge-case inputs of one dtype. So its tests are split
by dtype and these inputs into parts.
"""

from __future__ import annotations

import os
import sys
import time
import xml.etree.ElementTree as Xml
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .processes import ROOT, TimedOut, execute

#: The maximum number of processes. Each takes some hundred MiB of the GPU.
PROCESSES = 14
#: pytest's exit status if it found no test.
NONE_FOUND = 5

TYPES = {
    "fp16": "float16 and not bfloat16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "fp64": "float64",
    "other": "not float",
}
#: The number of parts of the edge-case inputs (test_gpu.py).
PARTS = 4
#: The tests of every backend: tests/test_<stem>.py.
BACKEND_TESTS = {"cuda": ("score", "topk", "hinge", "quantized_topk"), "triton": ("score", "topk", "hinge")}


def selections() -> dict[str, list[str]]:
    """Selection -> pytest's arguments, the most important first: the last ones are skipped if time runs out."""
    chosen = {"cuda": gpu_only_tests("cuda and not triton"), "either": gpu_only_tests("not cuda and not triton")}
    for stem in BACKEND_TESTS["cuda"]:
        chosen[f"cuda {stem}"] = backend_tests(stem, "cuda")
    for name, dtype in TYPES.items():
        chosen[f"triton {name}"] = gpu_only_tests(f"triton and ({dtype}) and not part")
        for part in range(PARTS if name != "other" else 0):
            chosen[f"triton {name} {part}"] = gpu_only_tests(f"triton and ({dtype}) and part{part}")
    for stem in BACKEND_TESTS["triton"]:
        for name, dtype in TYPES.items():
            chosen[f"triton {stem} {name}"] = backend_tests(stem, f"triton and ({dtype})")
    return chosen


def backend_tests(stem: str, which: str) -> list[str]:
    """Without the edge-case inputs, which test_gpu.py tests itself."""
    which += " and not those_of_the_definition and not edge_case_inputs"
    return ["-p", "on_device", f"tests/test_{stem}.py", "-k", which]


def gpu_only_tests(which: str) -> list[str]:
    return ["tests/test_gpu.py", "-m", "gpu", "-k", which]


def run(folder: Path, seconds: float, chosen: dict[str, list[str]] | None = None) -> tuple[Counter[str], list[str]]:
    """The numbers of passed, failed and other tests, and a line for each test that did not pass (also if skipped)."""
    end, chosen = time.monotonic() + seconds, selections() if chosen is None else chosen
    settings = {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }

    def one(name: str) -> tuple[Counter[str], list[str]]:
        log, report = folder / f"{name.replace(' ', '_')}.log", folder / f"{name.replace(' ', '_')}.xml"
        log.unlink(missing_ok=True)
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if end <= time.monotonic():
            return Counter(), [f"{name}: no time was left"]
        try:
            status = execute([*command, *chosen[name]], log, end - time.monotonic(), settings)
        except TimedOut as late:
            return Counter(), [f"{name}: {late}"]
        if not report.exists():
            return Counter(), [f"{name}: pytest ended with status {status} ({log.name})"]
        counts, bad = read(report)
        if status not in (0, NONE_FOUND) and not bad:
            bad = [f"{name}: pytest ended with status {status} ({log.name})"]
        return counts, [f"{name}: {line}" for line in bad]

    with ThreadPoolExecutor(min(PROCESSES, len(os.sched_getaffinity(0)))) as pool:
        found = list(pool.map(one, chosen))
    return sum((counts for counts, _ in found), Counter()), [line for _, bad in found for line in bad]


def read(report: Path) -> tuple[Counter[str], list[str]]:
    """The counts of a JUnit report, and a line for each test that did not pass."""
    counts, bad = Counter(), []
    for case in Xml.parse(report).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        counts["passed" if outcome is None else outcome.tag] += 1
        if outcome is not None:
            reason = (outcome.get("message") or "").split("\n")[0]
            bad.append(f"{case.get('name')}: {outcome.tag}: {reason}")
    return counts, bad
