"""`python -m bench`: check, measure and write bench/results/cpu.{json,md,png}. Exit code 1 if our result is wrong."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import time
from pathlib import Path

import torch

import dissim_kernels

from . import machine, ours, peers, report  # noqa: F401  (ours and peers register themselves)
from .cases import CASES
from .run import TimeBudget, run

ROOT = Path(__file__).parents[1]
QUICK = TimeBudget(rounds=3, min_round_s=0.02, full_s=0.2, sampled_s=0.1)
#: The largest case of `--quick`.
QUICK_ELEMENTS = 1 << 25


def main() -> int:
    options = _options()
    if options.render:
        results, facts = report.read(options.output / "cpu.json")
        _say_paths(report.write(results, facts, options.output))
        return 0
    if reason := dissim_kernels.unavailable_backends().get("cpu"):
        sys.exit(f"bench: the kernels cannot run: {reason}")
    budget = QUICK if options.quick else TimeBudget()
    selected = [case for case in CASES if any(text in case.name for text in options.only)]
    cases = [case for case in selected if case.quick or not options.quick]
    if not cases:
        sys.exit(f"bench: no case is named like {options.only!r}; cases: {', '.join(case.name for case in CASES)}")
    facts = machine.describe() | {"command": shlex.join(["python", "-m", "bench", *sys.argv[1:]])}
    say(machine.environment_summary(facts))
    if warning := machine.busy(facts):
        say(f"WARNING: {warning}")

    begin, results, paths = time.monotonic(), [], []
    for case in cases:
        say(f"{case.name}  [{time.monotonic() - begin:.0f} s]")
        case = case.shrunk(QUICK_ELEMENTS) if options.quick else case
        results.append(run(case, budget, torch.get_num_threads(), facts["isa"], say))
        say(report.table(results[-1]))
        facts |= {"load_after": machine.load(), "seconds": round(time.monotonic() - begin), "quick": options.quick}
        facts["datetime"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        paths = report.write(results, facts, options.output)  # after each case: a stopped run keeps its results
    _say_paths(paths)
    wrong = [f"{result.case.name}: {row.name}" for result in results for row in result.rows if row.ours and row.wrong]
    if wrong:
        say("FAILED the correctness check: " + "; ".join(wrong))
    return 1 if wrong else 0


def say(text: str) -> None:
    print(text, flush=True)


def _say_paths(paths: list[Path]) -> None:
    for path in paths:
        say(f"wrote {os.path.relpath(path)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test on small sizes; writes to runs/bench")
    parser.add_argument("--only", default=[""], nargs="+", metavar="TEXT", help="only cases whose name contains one")
    parser.add_argument(
        "--render", action="store_true", help="write cpu.md and cpu.png from cpu.json, measure nothing"
    )
    parser.add_argument("--output", type=Path, help="folder for cpu.json, cpu.md, cpu.png")
    options = parser.parse_args()
    if options.output is None:
        partial = options.quick or options.only != [""]  # does not replace the results of a full run
        options.output = ROOT / "runs" / "bench" if partial else ROOT / "bench" / "results"
    return options


if __name__ == "__main__":
    sys.exit(main())
