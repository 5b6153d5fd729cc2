"""`python -m bench`: gate, measure, write bench/results/cpu.{json,md,png}. Exit code 1 if ours failed the gate."""

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
from .run import Effort, run

ROOT = Path(__file__).parents[1]


def main() -> int:
    options = _options()
    if reason := dissim_kernels.unavailable_backends().get("cpu"):
        sys.exit(f"bench: the kernels cannot run: {reason}")
    effort = Effort(rounds=3, least=0.02, whole=0.2, part=0.1) if options.quick else Effort()
    wanted = [case for case in CASES if any(text in case.name for text in options.only)]
    cases = [case for case in wanted if case.quick or not options.quick]
    if not cases:
        sys.exit(f"bench: no case is named like {options.only!r}; cases: {', '.join(case.name for case in CASES)}")
    facts = machine.describe() | {"command": shlex.join(["python", "-m", "bench", *sys.argv[1:]])}
    say(machine.line(facts))
    if warning := machine.busy(facts):
        say(f"WARNING: {warning}")

    begin, outcomes, files = time.monotonic(), [], []
    for case in cases:
        say(f"{case.name}  [{time.monotonic() - begin:.0f} s]")
        case = case.shrunk(1 << 25) if options.quick else case
        outcomes.append(run(case, effort, torch.get_num_threads(), facts["isa"], say))
        say(report.table(outcomes[-1]))
        facts |= {"load_after": machine.load(), "seconds": round(time.monotonic() - begin), "quick": options.quick}
        facts["datetime"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        files = report.write(outcomes, facts, options.output)  # each time: a run that is stopped keeps what it has
    for path in files:
        say(f"wrote {os.path.relpath(path)}")
    wrong = [f"{o.case.name}: {row.name}" for o in outcomes for row in o.rows if row.ours and row.wrong]
    if wrong:
        say("RED GATE: " + "; ".join(wrong))
    return 1 if wrong else 0


def say(text: str) -> None:
    print(text, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test on small sizes; writes to runs/bench")
    parser.add_argument("--only", default=[""], nargs="+", metavar="TEXT", help="only cases named with one of these")
    parser.add_argument("--output", type=Path, help="folder for cpu.json, cpu.md, cpu.png")
    options = parser.parse_args()
    if options.output is None:
        partial = options.quick or options.only != [""]  # never in place of a full run's results
        options.output = ROOT / "runs" / "bench" if partial else ROOT / "bench" / "results"
    return options


if __name__ == "__main__":
    sys.exit(main())
