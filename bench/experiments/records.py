"""Results of a group as JSON lines: the plan first, then trials, runs and the machines they ran on.

A line is appended and flushed to the disk when its result exists, so a stopped program loses the result in progress
only. Everything in tables and pictures is computed from these files.
"""

from __future__ import annotations

import fcntl
import json
import os
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .plan import TUNING_SPLIT

#: Values of identities are stored as integers, in units of 1 / UNITS.
UNITS = 10_000
#: Key of a run's values in galleries without the images of the query's camera. Runs of earlier versions have none.
OTHER_CAMERAS = "other cameras"


class Run(NamedTuple):
    """A method's result for one split and seed: for each identity, int [I], the mean over its queries, float [I]."""

    identities: np.ndarray
    precision: np.ndarray
    recall_at_1: np.ndarray


class Records:
    """The results of one group. `append` is there inside `appending` only."""

    def __init__(self, plan: Mapping[str, Any], entries: list[dict[str, Any]]) -> None:
        self.plan, self.entries = plan, entries
        self._file: Any = None

    def append(self, entry: dict[str, Any]) -> None:
        """Add one entry and wait until the disk has it. A part that is there already is not added again."""
        if entry["kind"] == "part" and entry["name"] in {part["name"] for part in self.of("part")}:
            return
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.append(entry)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The entries of a kind: trial, part, run or machine."""
        return [entry for entry in self.entries if entry["kind"] == kind]

    @property
    def methods(self) -> list[str]:
        return list(self.plan["compared"])

    def planned_trials(self, method: str) -> list[dict[str, Any]]:
        """The settings of a method's trials."""
        return self.plan["compared"][method]["trials"]

    def trials(self, method: str, split: int = TUNING_SPLIT) -> dict[int, float]:
        """Trial number -> validation mAP on a split; 0 for a fit that diverged."""
        done = [entry for entry in self.of("trial") if (entry["method"], entry["split"]) == (method, split)]
        return {entry["trial"]: entry["mAP"] or 0.0 for entry in done}

    def candidates(self, method: str) -> list[int]:
        """The trials that are best on TUNING_SPLIT, the best first."""
        planned, done = self.planned_trials(method), self.trials(method)
        if len(done) < len(planned):
            raise RuntimeError(f"{method}: {len(done)} of {len(planned)} trials are done")
        ordered = sorted(done, key=lambda trial: (-done[trial], trial))
        return ordered[: self.plan["amounts"]["candidates"]]

    @property
    def tuning_splits(self) -> range:
        """The splits whose validation identities choose settings. A single candidate leaves nothing to choose."""
        amounts = self.plan["amounts"]
        return range(amounts["splits"] if amounts["candidates"] > 1 else 1)

    def untuned(self) -> list[str]:
        """The methods whose trials, or whose candidates on the tuning splits, are not complete."""
        return [name for name in self.methods if self.planned_trials(name) and self._means(name) is None]

    def tuned(self, method: str) -> tuple[dict[str, Any], float | None]:
        """The settings with the highest validation mAP, the mean of the tuning splits, and that mAP.

        Without tuning, no settings and None.
        """
        planned = self.planned_trials(method)
        if not planned:
            return {}, None
        means = self._means(method)
        if means is None:
            raise RuntimeError(f"{method}: its best trials are not fitted on all splits yet")
        best = max(means, key=means.__getitem__)
        return planned[best], means[best]

    def _means(self, method: str) -> dict[int, float] | None:
        """Candidate -> mean validation mAP of the tuning splits; None until all are there."""
        if len(self.trials(method)) < len(self.planned_trials(method)):
            return None
        candidates = self.candidates(method)
        splits = [self.trials(method, split) for split in self.tuning_splits]
        if any(trial not in done for done in splits for trial in candidates):
            return None
        return {trial: statistics.fmean(done[trial] for done in splits) for trial in candidates}

    def runs(self, method: str, *, other_cameras: bool = False) -> dict[tuple[int, int], Run]:
        """(split, seed) -> result. other_cameras: in galleries without the images of the query's camera."""
        parts = {entry["name"]: np.array(entry["identities"]) for entry in self.of("part")}
        found = {}
        for entry in self.of("run"):
            values = entry.get(OTHER_CAMERAS) if other_cameras else entry
            if entry["method"] == method and values is not None:
                precision, recall = (np.array(values[name]) / UNITS for name in ("AP", "R1"))
                found[entry["split"], entry["seed"]] = Run(parts[entry["part"]], precision, recall)
        return found

    def seconds(self, method: str | None = None) -> list[float]:
        """Core-seconds of each trial and run, of one method or of all."""
        return [e["seconds"] for e in self.entries if "seconds" in e and method in (None, e["method"])]


def has_plan(path: Path) -> bool:
    """Whether the first line of a file is complete, so that it can be read."""
    with path.open("rb") as file:
        return file.readline().endswith(b"\n")


def read(path: Path) -> Records:
    """The results in a file that has a plan. An unfinished last line, of a program that was killed, is not read."""
    lines = path.read_text().split("\n")[:-1]
    plan, *entries = map(json.loads, lines)
    return Records(plan, entries)


@contextmanager
def appending(path: Path, plan: Mapping[str, Any]) -> Iterator[Records]:
    """The results in a file, or a new file with this plan, to be continued. Only one process may have it open.

    Raises ValueError if the file has another plan, and BlockingIOError if another process continues it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{path}: another process continues this file. Wait, or choose other sets."
            ) from error
        file.seek(0)
        complete = file.read().rpartition("\n")[0]
        file.truncate(len(complete.encode()) + 1 if complete else 0)
        if not complete:
            complete = json.dumps(plan)
            file.write(complete + "\n")
            file.flush()
            os.fsync(file.fileno())
        records = Records(plan, [json.loads(line) for line in complete.split("\n")[1:]])
        check_plan(path, json.loads(complete.split("\n")[0]), plan)
        records._file = file
        yield records


def check_plan(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError if a file has another plan than expected."""
    expected = json.loads(json.dumps(expected))
    if found != expected:
        changed = [key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)]
        raise ValueError(
            f"{path}: expected results of the same plan, got others ({', '.join(changed)}). "
            "Delete the file, or choose another --output."
        )
