"""What is left to do in a group, in which order, what it costs, and the entries that come of it."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from dissim_retrieval.evaluation import cosine

from .. import machine
from . import factors, frozen, joint
from .data import Parts
from .plan import FROZEN_TRIALS, TUNING_SPLIT, Amounts, Group
from .records import OTHER_CAMERAS, UNITS, Records
from .trial import Fitted, Method, Values, measure_part
from .tuning import settings_to_try

#: For pretrained networks, which take four times as long: without softmax and w <= 0, chosen by `joint` from scratch.
SELECTED = {"losses": ("hinge", "log-sum-exp"), "scores": ("w", "L1", "cosine")}
JOINT = joint.methods(joint.PRETRAINED, **SELECTED)
METHODS = {
    "frozen": frozen.METHODS,
    "cameras": frozen.CAMERA_METHODS,
    "joint": JOINT,
    "joint, from scratch": joint.methods(joint.FROM_SCRATCH),
    "selected, frozen": {name: frozen.METHODS[name] for name in frozen.SELECTED},
    "selected, from scratch": joint.methods(joint.FROM_SCRATCH, **SELECTED),
    "demo": {name: JOINT[name] for name in joint.IN_DEMO},
    "factors": factors.METHODS,
    "defaults": factors.DEFAULTS_METHODS,
    "fit_head": frozen.FIT_HEAD_METHODS,
    "fit_head, batches": frozen.FIT_HEAD_BATCH_METHODS,
}
#: Seed of the trials. Runs have 0, 1, ...
TUNING_SEED = 1000


class Cell(NamedTuple):
    """One fit: a trial of a method's settings, one of its best trials on another split, or a run of its settings."""

    method: str
    trial: int | None = None
    rank: int | None = None
    """Of the trial among those on TUNING_SPLIT, 0 for the best. The trial is known when all of them are done."""
    split: int = TUNING_SPLIT
    seed: int = TUNING_SEED

    @property
    def stage(self) -> str:
        """The cells of a stage can be done in any order, when those of the stages before are complete."""
        if self.trial is not None:
            return "trial"
        return "run" if self.rank is None else "candidate"

    def __str__(self) -> str:
        if self.stage == "trial":
            return f"{self.method}: trial {self.trial}"
        if self.stage == "candidate":
            return f"{self.method}: split {self.split}, trial of rank {self.rank}"
        return f"{self.method}: split {self.split}, seed {self.seed}"


def make_plan(group: Group, methods: Mapping[str, Method], amounts: Amounts, fingerprint: str) -> dict[str, Any]:
    """The first line of a group's file: all that determines its results but code and machine."""
    compared = {}
    count = amounts.trials * FROZEN_TRIALS if group.frozen else amounts.trials
    for name, method in methods.items():
        trials = settings_to_try(method.space, count) if group.tuned else []
        ranges = {setting: str(one) for setting, one in method.space.items()}
        compared[name] = {"ours": method.ours, "space": ranges, "trials": trials}
    facts = asdict(group) | {"key": group.key, "title": group.title, "tuned": group.tuned}
    return {"kind": "plan", **facts, "amounts": asdict(amounts), "images": fingerprint, "compared": compared}


def pending(records: Records) -> list[Cell]:
    """The cells that are not done, in order: all trials, the best on other splits, then the runs.

    The runs have all methods of a split and seed together, so a program that is stopped has complete comparisons.
    """
    amounts, cells = records.plan["amounts"], []
    for name in records.methods:
        done = records.trials(name)
        cells += [Cell(name, trial) for trial in range(len(records.planned_trials(name))) if trial not in done]
    for name in records.methods:
        cells += _pending_candidates(name, records)
    finished = {(entry["method"], entry["split"], entry["seed"]) for entry in records.of("run")}
    for seed in range(amounts["seeds"]):
        for split in range(amounts["splits"]):
            for name in records.methods:
                if (name, split, seed) not in finished:
                    cells.append(Cell(name, split=split, seed=seed))
    return cells


def _pending_candidates(method: str, records: Records) -> list[Cell]:
    planned = len(records.planned_trials(method))
    complete = len(records.trials(method)) == planned
    candidates = (
        records.candidates(method) if complete else [None] * min(planned, records.plan["amounts"]["candidates"])
    )
    return [
        Cell(method, None, rank, split)
        for split in records.tuning_splits
        if split != TUNING_SPLIT
        for rank, trial in enumerate(candidates)
        if trial not in records.trials(method, split)
    ]


def expected_seconds(cell: Cell, records: Records) -> float | None:
    """The mean of the method's recorded core-seconds, or that of all methods; None without any record."""
    known = records.seconds(cell.method) or records.seconds()
    return statistics.fmean(known) if known else None


def measured(cell: Cell, group: Group, method: Method, parts: Parts, records: Records) -> list[dict[str, Any]]:
    """Fit and measure one cell: its entries for the records."""
    return (_run if cell.stage == "run" else _trial)(cell, group, method, parts, records)


def _trial(cell: Cell, group: Group, method: Method, parts: Parts, records: Records) -> list[dict[str, Any]]:
    begin = time.process_time()
    trial = cell.trial if cell.rank is None else records.candidates(cell.method)[cell.rank]
    settings = records.planned_trials(cell.method)[trial]
    precision = recall = failure = None
    try:
        fitted = method.fit(group, parts.train(cell.split), settings, cell.seed)
        values = measure_part(fitted, parts.validation(cell.split)).standard
        precision, recall = (round(column.mean().item(), 5) for column in values[1:])
    except FloatingPointError as error:  # training diverged with these settings; another trial may not
        failure = str(error)
    entry = {
        "kind": "trial", "method": cell.method, "trial": trial, "split": cell.split, "mAP": precision, "R1": recall,
        "failure": failure, "seconds": round(time.process_time() - begin, 2),
    }  # fmt: skip
    return [entry]


def _run(cell: Cell, group: Group, method: Method, parts: Parts, records: Records) -> list[dict[str, Any]]:
    begin = time.process_time()
    settings, _ = records.tuned(cell.method)
    part = parts.test(records) if group.tuned else parts.validation(cell.split)
    failure = None
    try:
        found = measure_part(method.fit(group, parts.train(cell.split), settings, cell.seed), part)
    except FloatingPointError as error:
        found, failure = measure_part(_random_scores(cell.seed), part), str(error)
    entry = {
        "kind": "run", "method": cell.method, "split": cell.split, "seed": cell.seed, "part": part.name,
        **_in_units(found.standard), "failure": failure, "seconds": round(time.process_time() - begin, 2),
    }  # fmt: skip
    if found.other_cameras is not None:
        entry[OTHER_CAMERAS] = _in_units(found.other_cameras)
    identities = found.standard.identities.tolist()
    return [{"kind": "part", "name": part.name, "identities": identities, "queries": len(part.queries)}, entry]


def _in_units(values: Values) -> dict[str, list[int]]:
    precision, recall = (np.rint(column.numpy() * UNITS).astype(int).tolist() for column in values[1:])
    return {"AP": precision, "R1": recall}


def _random_scores(seed: int) -> Fitted:
    """What a run that diverged counts as."""
    draw = torch.Generator().manual_seed(seed)
    return Fitted(lambda content: torch.randn(len(content.labels), 8, generator=draw), cosine)


def start_session(records: Records) -> None:
    """Append the machine that the next records come from."""
    facts = machine.describe()
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    records.append({"kind": "machine", "summary": machine.environment_summary(facts), "datetime": now})
