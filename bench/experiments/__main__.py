"""`python -m bench.experiments NAME`: compare methods, or continue; write results, tables and picture.

NAME: frozen, cameras, joint, demo, factors, defaults, fit_head, protocols, or report, which only writes tables and
pictures of what there is.
Exit code: 0, also if the budget ends the program before everything is done (the same command continues); 1 for an
error, 2 for wrong arguments, 130 if interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import files
from . import evidence, plots, records, summary, tables
from .data import Parts, load_parts
from .plan import EXPERIMENTS, ON_DISK, ON_DISK_EXPERIMENTS, QUICK, Amounts, Group, group_on_disk
from .processes import results
from .records import Records
from .runner import METHODS, Cell, expected_seconds, make_plan, measured, pending, start_session

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "experiments"
#: What `dissim demo` says about the methods that it compares.
EVIDENCE = ROOT / "python" / "dissim_retrieval" / "evidence.json"
CACHE = ROOT / "runs" / "experiments"


class Session:
    """The groups of one call of the program, their data and open files, and what was spent."""

    def __init__(self, groups: list[Group], amounts: Amounts, options: argparse.Namespace, stack: ExitStack) -> None:
        self.groups, self.processes, self.spent = groups, options.processes, 0.0
        self.parts: dict[str, Parts] = {}
        self.records: dict[str, Records] = {}
        self.started: set[str] = set()
        for group in groups:
            self.parts[group.key], fingerprint = load_parts(group, amounts, CACHE, options.root)
            plan = make_plan(group, METHODS[group.methods], amounts, fingerprint)
            self.records[group.key] = stack.enter_context(records.appending(path_of(group, options.output), plan))

    def measure_costs(self) -> None:
        """Do a first cell of each group that has no record yet, to know what the others take.

        With a frozen backbone, methods differ much, so one cell of each method is done. With a trained one, the
        backbone takes most of the time of all.
        """
        for group in self.groups:
            found = self.records[group.key]
            names = found.methods if group.frozen else found.methods[:1]
            first = {cell.method: cell for cell in reversed(pending(found))}
            self._do(group, [first[name] for name in names if not found.seconds(name)])

    def estimate(self) -> str:
        """What is left, in core-hours, by the records of the methods, or of their group, so far."""
        lines, total = [], 0.0
        for group in self.groups:
            found = self.records[group.key]
            cells = pending(found)
            seconds = sum(expected_seconds(cell, found) or 0 for cell in cells)
            lines.append(f"{group.title}: {len(cells)} fits left, about {seconds / 3600:.2f} core-hours")
            total += seconds
        return "\n".join([*lines, f"in all about {total / 3600:.2f} core-hours"])

    def run(self, hours: float) -> bool:
        """Do what is left, until the budget would be exceeded. Whether everything is done."""
        for group in self.groups:
            found = self.records[group.key]
            while cells := pending(found):
                stage = [cell for cell in cells if cell.stage == cells[0].stage]
                if self._do(group, stage, hours) < len(stage):
                    return False
        return True

    def _do(self, group: Group, cells: list[Cell], hours: float = math.inf) -> int:
        """Do cells of one stage while the budget allows it. How many were done."""
        found = self.records[group.key]
        expected: dict[Cell, float] = {}  # seconds of the cells in progress
        done = 0

        def affordable() -> Iterator[Cell]:
            for cell in cells:
                expected[cell] = expected_seconds(cell, found) or 0.0
                if self.spent + sum(expected.values()) > hours * 3600:
                    return
                yield cell

        def compute(cell: Cell) -> list[dict[str, Any]]:
            return measured(cell, group, METHODS[group.methods][cell.method], self.parts[group.key], found)

        for cell, entries in results(affordable(), compute, self.processes):
            if group.key not in self.started:
                start_session(found)
                self.started.add(group.key)
            for entry in entries:
                found.append(entry)
            seconds = entries[-1]["seconds"]
            del expected[cell]
            self.spent += seconds
            done += 1
            say(f"[{self.spent / 3600:.2f} h] {group.key}: {cell}: {seconds:.1f} s")
        return done


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        if options.name == "report":
            return _report(options.output)
        return _run(options)
    except KeyboardInterrupt:
        say("interrupted; the same command continues")
        return 130
    except (ValueError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        print(f"bench.experiments: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    groups = _groups(options)
    torch.set_num_threads(1)
    amounts = QUICK if options.quick else Amounts()
    if amounts.steps is not None:
        groups = [replace(group, steps=amounts.steps) for group in groups]
    if options.dry_run:
        return _list(groups, amounts, options.output)
    with ExitStack() as stack:
        session = Session(groups, amounts, options, stack)
        session.measure_costs()
        say(session.estimate())
        say(f"budget of this call: {options.hours:g} core-hours")
        done = session.run(options.hours)
    _report(options.output)
    say("done" if done else f"stopped at the budget of {options.hours:g} core-hours; the same command continues")
    return 0


def _groups(options: argparse.Namespace) -> list[Group]:
    if options.root is not None:
        return [group_on_disk(options.name, options.set, options.backbone or "efficientnet_lite0")]
    groups = [
        group for group in EXPERIMENTS[options.name]
        if options.set in (None, group.data) and options.backbone in (None, group.backbone)
    ]  # fmt: skip
    if not groups:
        raise ValueError(
            f"--set, --backbone: expected those of {options.name}, got {options.set}, {options.backbone}."
        )
    return groups


def _list(groups: list[Group], amounts: Amounts, output: Path) -> int:
    """Print what is left to do, without doing or loading anything."""
    for group in groups:
        path = path_of(group, output)
        plan = make_plan(group, METHODS[group.methods], amounts, "")
        found = records.read(path) if path.exists() and records.has_plan(path) else Records(plan, [])
        records.check_plan(path, found.plan, plan | {"images": found.plan["images"]})
        cells = pending(found)
        for cell in cells:
            say(f"{group.key}: {cell}")
        say(f"{group.key}: {len(cells)} fits left")
    return 0


def _report(output: Path) -> int:
    """Write tables, pictures and the demo's evidence from the JSON lines."""
    contents: dict[Path, str | bytes | None] = {}
    found: dict[str, list[Records]] = {}
    for folder in sorted(path for path in output.glob("*") if path.is_dir()):
        files_of_groups = [path for path in sorted(folder.glob("*.jsonl")) if records.has_plan(path)]
        groups = [records.read(path) for path in files_of_groups]
        contents[folder.with_suffix(".md")] = tables.to_markdown(folder.name, groups)
        contents[folder.with_suffix(".png")] = plots.draw(folder.name, groups)
        found[folder.name] = groups
    every = [one for groups in found.values() for one in groups]
    contents[output / "summary.md"] = summary.to_markdown(every)
    contents[output / "summary.png"] = plots.draw_summary(every)
    demo = next(iter(found.get("demo", [])), None)
    if output == RESULTS and demo is not None and not demo.untuned():
        contents[EVIDENCE] = evidence.to_json(demo)
    for path, content in contents.items():
        if content is not None:
            files.replace(path, content)
            say(f"wrote {os.path.relpath(path)}")
    return 0


def path_of(group: Group, output: Path) -> Path:
    """The file of a group's results."""
    return output / group.experiment / f"{group.key}.jsonl"


def say(text: str) -> None:
    print(text, flush=True)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.experiments", description=__doc__)
    parser.add_argument("name", choices=[*EXPERIMENTS, "report"], metavar="NAME")
    parser.add_argument("--set", choices=["emoji", "emoji7", "glyphs", *ON_DISK], help="only this image set")
    parser.add_argument("--root", type=Path, help=f"the folder of the set, for {', '.join(ON_DISK)}")
    parser.add_argument("--backbone", help="only this backbone; with --root, one that takes the set's size")
    parser.add_argument(
        "--hours", type=float, default=20.0, help="core-hours of this call, at most, or those of its first fits"
    )
    parser.add_argument("--processes", type=int, default=1, help="fits at the same time, each with one thread")
    parser.add_argument("--dry-run", action="store_true", help="list what is left to do")
    parser.add_argument("--quick", action="store_true", help="a smoke test on few images; writes to runs/experiments")
    parser.add_argument("--output", type=Path, help="folder of the results")
    options = parser.parse_args(arguments)
    if not options.hours >= 0 or options.processes < 1:
        parser.error(f"expected --hours from 0, --processes from 1, got {options.hours}, {options.processes}")
    if (options.set in ON_DISK) != (options.root is not None):
        parser.error(f"expected --root with the sets {', '.join(ON_DISK)} only, got --set {options.set}")
    if options.root is not None and options.name not in ON_DISK_EXPERIMENTS:
        parser.error(f"expected --root with {', '.join(ON_DISK_EXPERIMENTS)} only, got it with {options.name}")
    if options.output is None:
        options.output = CACHE / "quick" if options.quick else RESULTS
    return options


if __name__ == "__main__":
    sys.exit(main())
