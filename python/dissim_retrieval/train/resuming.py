"""Continuing a run from its folder: what must be as before, and what may be repaired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..data import ImageFiles, ImageSet
from ..data.decode import DamagedImageError, printable
from ..logs import get_logger
from ..provenance import check_same_data, image_size
from . import run_folder
from .config import TrainConfig
from .own_modules import check_same_modules
from .state import TrainingState

logger = get_logger(__name__)

_REMEDY = "Pass the run's values to continue it, or choose a new folder."
#: The image sets of a run, by the name that they have in its provenance.
Sets = Mapping[str, ImageSet | None]


def resume(state: TrainingState, folder: Path, facts: dict, sets: Sets, *, write: bool) -> None:
    """Continue from the checkpoint in `folder`, if there is one; else begin a run there."""
    if not (folder / run_folder.CHECKPOINT).exists():
        if (folder / run_folder.MODEL).exists():
            raise ValueError(f"folder: {folder} has a finished run without its checkpoint. Choose a new folder.")
        if write:
            run_folder.write_config(folder, state.config, facts)
        return
    config, recorded = run_folder.read_config(folder)
    _check_same_config(config, state.config, folder)
    _check_same_size(recorded, facts, folder)
    repaired = _accept_repaired(recorded, facts, sets)
    check_same_data(recorded, facts, argument="images", source=folder)
    check_same_modules(recorded, facts, source=folder)
    checkpoint = run_folder.read_checkpoint(folder)
    try:
        state.load_state_dict(checkpoint)
    except (RuntimeError, KeyError, ValueError) as error:
        first_line = str(error).split("\n")[0]
        raise ValueError(
            f"folder: the checkpoint in {folder} is of another network or loss ({first_line}). Choose a new folder."
        ) from error
    if repaired and write:
        run_folder.write_config(folder, config, facts)
    if state.finished:
        logger.info("%s: finished before, after step %d; nothing is trained", folder, state.steps)
    else:
        logger.info("%s: continues after step %d of %d", folder, state.steps, config.steps)


def how_to_continue(folder: Path) -> str:
    """A sentence that says what starting a stopped run again will do."""
    steps = run_folder.saved_steps(folder)
    if steps == 0:
        return "No step is saved yet: the same call or command begins again."
    return f"The same call or command continues after step {steps}."


@contextmanager
def reading(folder: Path | None, key: str, images: ImageSet) -> Iterator[None]:
    """While images are read: an error says how the run in `folder` continues. `key` is that of the set in Sets.

    A damaged file may be repaired then: no step has used it.
    """
    try:
        yield
    except DamagedImageError as error:
        steps = 0 if folder is None else run_folder.saved_steps(folder)
        if folder is None or steps == 0:
            raise
        _allow_repair(folder, key, images, error.name)
        remedy = (
            f"Repair only this file, and the same call or command continues after step {steps}. To train without it"
            " (removed, or skipped by skip_damaged=True, on the command line --skip-damaged), choose a new folder."
        )
        raise DamagedImageError(error.name, error.reason, remedy) from error
    except Exception:
        if folder is not None:
            logger.warning("%s: stopped by an error. %s", folder, how_to_continue(folder))
        raise


def _check_same_config(before: TrainConfig, now: TrainConfig, folder: Path) -> None:
    changed = {name for name, value in vars(now).items() if value != getattr(before, name)}
    if "own" in (before.loss, now.loss):
        changed.discard("loss")  # check_same_modules compares them. Earlier versions recorded another one for "own".
    if "steps" in changed:
        raise ValueError(
            f"steps: expected {before.steps}, as the run in {folder} has, got {now.steps}. A run cannot be extended,"
            " because its learning-rate schedule covers just these steps. Choose a new folder."
        )
    if changed:
        names = [name for name in vars(now) if name in changed]
        values = [f"{name}: expected {getattr(before, name)}, got {getattr(now, name)}" for name in names]
        values[0] = values[0].replace(", got", f", as the run in {folder} has, got", 1)
        raise ValueError(f"{'; '.join(values)}. {_REMEDY}")


def _check_same_size(recorded: Mapping, found: Mapping, folder: Path) -> None:
    before, now = image_size(recorded), image_size(found)
    if before and now and before != now:
        raise ValueError(
            f"size: expected {'x'.join(map(str, before))}, as the run in {folder} has, got {'x'.join(map(str, now))}."
            f" {_REMEDY}"
        )


def _allow_repair(folder: Path, key: str, images: ImageSet, name: str) -> None:
    """Record the images without the content of the file that an error calls `name`, unless the file has changed since
    the run began: steps before may have used it then."""
    config, facts = run_folder.read_config(folder)
    files = images.images
    if not isinstance(files, ImageFiles) or replace(images).fingerprint != facts[key]["fingerprint"]:
        return
    ids = [images.ids[row] for row in range(len(files)) if printable(files.path(row)) == name]
    facts[key]["damaged"] = {"ids": ids, "fingerprint_without": images.fingerprint_without(ids)}
    run_folder.write_config(folder, config, facts)


def _accept_repaired(recorded: dict, found: Mapping, sets: Sets) -> bool:
    """Take the repaired images for those of the run, in `recorded`. Returns whether there are some."""
    repaired = False
    for key, images in sets.items():
        damaged = (recorded[key] or {}).get("damaged")
        if images is None or damaged is None:
            continue
        if images.fingerprint_without(damaged["ids"]) == damaged["fingerprint_without"]:
            recorded[key] = found[key]
            repaired = True
    return repaired
