"""The files of a training run: settings, checkpoint, log and the trained weights.

config.json      the TrainConfig and the provenance
checkpoint.pt    the state to continue from; no code is run from it
log.csv          a row for each step
model.safetensors  weights of backbone and classifier, written when the run has ended
"""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from ..atomic import atomic_write, remove_unfinished
from ..data.decode import printable
from .config import TrainConfig
from .state import PARTS, VALUES

CONFIG, CHECKPOINT, MODEL, LOG = "config.json", "checkpoint.pt", "model.safetensors", "log.csv"
LOCK = "train.lock"
COLUMNS = ("step", "loss", "lr", "validation_mAP", "seconds")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """While a process writes a run. Raises BlockingIOError if another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(folder / LOCK, timeout=0)
    try:
        file_lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"folder: another process trains in {folder}. Wait for its end, or choose a new folder."
        ) from error
    try:
        yield
    finally:
        file_lock.release()


def check_folder(folder: Path) -> None:
    """Raise for a folder that is neither new nor empty nor that of a run. Hidden files do not count."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"folder: expected a folder, or the name of a new one, got {folder}, a file.")
    if (folder / CONFIG).exists():
        read_config(folder)
        return
    own = {CHECKPOINT, MODEL, LOG, LOCK}
    others = sorted(path.name for path in folder.iterdir() if path.name not in own and not path.name.startswith("."))
    if others:
        raise ValueError(
            f"folder: expected a new folder or one of a run, got {folder}, which has other files, such as"
            f" {printable(others[0])}. Choose a new folder."
        )


def clean(folder: Path) -> None:
    """Delete what killed processes left of files that they were writing. One process at a time writes a run."""
    for name in (CONFIG, CHECKPOINT, MODEL, LOG):
        remove_unfinished(folder / name)


def write_config(folder: Path, config: TrainConfig, provenance: Mapping) -> None:
    """Write config.json."""
    with atomic_write(folder / CONFIG) as file:
        file.write(json.dumps({"config": asdict(config), "provenance": provenance}, indent=1).encode())


def read_config(folder: Path) -> tuple[TrainConfig, dict]:
    """The settings and the provenance of the run in `folder`."""
    path = folder / CONFIG
    if (folder / "index.json").is_file():
        raise ValueError(
            f"folder: expected a training run, got {folder}, which is a gallery. Pass the run that it was made with."
        )
    if not path.exists():
        what = f"has no {CONFIG}" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"folder: expected a training run, got {folder}, which {what}.")
    try:
        content = json.loads(path.read_text())
        return TrainConfig(**content["config"]), content["provenance"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_damaged(path, "the settings of a training run", error)) from error


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write checkpoint.pt."""
    with atomic_write(folder / CHECKPOINT) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # in the place of an OSError, such as that of a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of checkpoint.pt."""
    path = folder / CHECKPOINT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {*PARTS, *VALUES}.difference(state if isinstance(state, dict) else ())
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
        return state
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(_damaged(path, "a checkpoint", error)) from error


def saved_steps(folder: Path) -> int:
    """The number of steps after which the checkpoint in `folder` was written; 0 if there is none."""
    return read_checkpoint(folder)["steps"] if (folder / CHECKPOINT).exists() else 0


def write_model(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write model.safetensors."""
    copies = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()
    }
    with atomic_write(folder / MODEL) as file:
        file.write(safetensors.torch.save(copies))


def read_model(folder: Path) -> dict[str, Tensor]:
    """The content of model.safetensors."""
    path = folder / MODEL
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(_damaged(path, "the weights of a trained model", error)) from error


class Log:
    """log.csv: a row for each step, in the columns COLUMNS. To open it drops the rows of steps after `start`."""

    def __init__(self, folder: Path, start: int) -> None:
        path = folder / LOG
        rows = []
        if start and path.exists():
            with open(path, newline="") as before:
                whole = [row for row in csv.reader(before) if len(row) == len(COLUMNS)]
            rows = [row for row in whole if row[0].isdigit() and int(row[0]) <= start]
        with atomic_write(path) as new:
            new.write("".join(f"{','.join(row)}\n" for row in [COLUMNS, *rows]).encode())
        self._file = open(path, "a", newline="", buffering=1)  # noqa: SIM115 it is closed in __exit__

    def write(self, *values: object) -> None:
        """Append the values of a step; None is an empty field."""
        csv.writer(self._file, lineterminator="\n").writerow(values)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _damaged(path: Path, expected: str, error: Exception) -> str:
    reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
    return (
        f"{path}: expected {expected}, got a damaged file or one of another version ({reason}). Restore it, or train"
        " in a new folder."
    )
