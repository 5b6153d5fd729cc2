"""Which tests a GPU runs, several at a time: what only a GPU can show, and the tests that every backend passes.

The latter are those of the CPU's backends (tests/on_device.py copies their tensors to the GPU and back). Most of the
time is Triton's, which compiles a kernel for each type and kind of size (some 120 for the edge-case inputs of a
type); so its tests are cut by type, and these inputs in parts.
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

#: At most so many processes, each with some hundred MiB on the GPU.
PROCESSES = 14
#: No test: the status by which pytest says that it found none.
NONE_FOUND = 5

TYPES = {
    "fp16": "float16 and not bfloat16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "fp64": "float64",
    "other": "not float",
}
#: The edge-case inputs are cut in so many parts (test_gpu.py).
PARTS = 4
#: Files with the tests of every backend.
OF_EVERY_BACKEND = {"cuda": ("score", "topk", "hinge", "quantized_topk"), "triton": ("score", "topk", "hinge")}


def selections() -> dict[str, list[str]]:
    """Name of each selection and pytest's arguments, the most important first: the last ones may find no time."""
    chosen = {"cuda": only_gpu("cuda and not triton"), "either": only_gpu("not cuda and not triton")}
    for stem in OF_EVERY_BACKEND["cuda"]:
        chosen[f"cuda {stem}"] = of_every_backend(stem, "cuda")
    for name, of_type in TYPES.items():
        chosen[f"triton {name}"] = only_gpu(f"triton and ({of_type}) and not part")
        for part in range(PARTS if name != "other" else 0):
            chosen[f"triton {name} {part}"] = only_gpu(f"triton and ({of_type}) and part{part}")
    for stem in OF_EVERY_BACKEND["triton"]:
        for name, of_type in TYPES.items():
            chosen[f"triton {stem} {name}"] = of_every_backend(stem, f"triton and ({of_type})")
    return chosen


def of_every_backend(stem: str, which: str) -> list[str]:
    """Without the tests that test_gpu.py has of its own."""
    which += " and not those_of_the_definition and not input_that_bites"
    return ["-p", "on_device", f"tests/test_{stem}.py", "-k", which]


def only_gpu(which: str) -> list[str]:
    return ["tests/test_gpu.py", "-m", "gpu", "-k", which]


def run(folder: Path, seconds: float, chosen: dict[str, list[str]] | None = None) -> tuple[Counter[str], list[str]]:
    """How many tests passed, failed and so on, and a line for each that did not pass; a skipped test did not."""
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

    with ThreadPoolExecutor(min(PROCESSES, os.cpu_count() or 1)) as pool:
        found = list(pool.map(one, chosen))
    return sum((counts for counts, _ in found), Counter()), [line for _, bad in found for line in bad]


def read(report: Path) -> tuple[Counter[str], list[str]]:
    """A JUnit report: counts, and a line for each test that did not pass."""
    counts, bad = Counter(), []
    for case in Xml.parse(report).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        counts["passed" if outcome is None else outcome.tag] += 1
        if outcome is not None:
            reason = (outcome.get("message") or "").split("\n")[0]
            bad.append(f"{case.get('name')}: {outcome.tag}: {reason}")
    return counts, bad
