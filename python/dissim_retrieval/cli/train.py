"""`dissim train`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import OmitArgPrefixes

from ..data import Split
from ..logs import get_logger, is_first_process
from ..train import TrainConfig, Trained, run_folder
from ..train import train as train_on
from ..train.resuming import how_to_continue
from .arguments import Device, ImageOptions, Run, pick_device
from .images import load_for_training
from .output import Output

logger = get_logger(__name__)


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    """Settings of the training."""

    loss: Literal["hinge", "soft_margin", "infonce", "supcon", "softmax", "prototype", "triplet"] = "hinge"
    """Trains backbone and pair classifier, see `dissim_retrieval.losses`. triplet is the batch-hard baseline, which
    has no classifier."""

    def __post_init__(self) -> None:
        """Nothing: the command makes a TrainConfig of them, so that an error in one is one line."""


@dataclass(frozen=True)
class TrainImages(ImageOptions):
    """The images: by default emoji of 64 pixels, with --root a folder of photos at 128 pixels. Networks of timm,
    torchvision and hf take the size of their weights."""


def train(
    run: Run,
    /,
    images: OmitArgPrefixes[TrainImages],
    options: OmitArgPrefixes[TrainOptions],
    part: Literal["train", "all"] = "train",
    device: Device = None,
    workers: int | None = None,
) -> Output:
    """Train a backbone and the pair classifier; write checkpoints and result to RUN. An interrupted run continues.

    Args:
        part: all: train on the identities of the test part, too.
        workers: Processes that read images. Default: one per core, at most 4.
    """
    start, config = time.perf_counter(), TrainConfig(**asdict(options))
    if run.exists() and not run.is_dir():
        raise NotADirectoryError(f"RUN: expected a folder, or a name for a new one, got {run}, which is a file.")
    run_folder.check_folder(run)
    computed_on = None if device is None else pick_device(device)
    steps_before = run_folder.saved_steps(run)
    split, trained = _load_and_train(run, images, config, part, computed_on, workers)
    if not is_first_process():
        return Output("", None)
    counts = {name: 0 if images is None else len(images.labels.unique()) for name, images in vars(split).items()}
    checkpoint = run_folder.read_checkpoint(run)
    steps, best = checkpoint["steps"], checkpoint["best"]
    record = {
        "run": str(run),
        "steps": steps,
        "steps_now": steps - steps_before,
        "seconds": time.perf_counter() - start,
        "identities": counts,
        "best_validation": None if best is None else {"mAP": best["mAP"], "step": best["steps"]},
        "provenance": trained.provenance,
    }
    validation = "" if best is None else f", validation mAP {best['mAP']:.3f} at step {best['steps']}"
    done = f"{steps} steps, {record['seconds']:.0f} s"
    if steps == steps_before:
        done = f"finished before, after {steps} steps; nothing was trained"
    text = (
        f"{run}: {done}{validation}\nidentities: {counts['train']} to train,"
        f" {counts['validation']} held out for validation, {counts['test']} to test"
    )
    return Output(text, record)


def _load_and_train(
    run: Path, images: TrainImages, config: TrainConfig, part: Literal["train", "all"], device: torch.device | None,
    workers: int | None,
) -> tuple[Split, Trained]:  # fmt: skip
    split, settings = load_for_training(images, part, config.backbone)
    if split.train is None:
        raise ValueError(f"data: expected a set with a training part, got {settings.data}, which is a test part.")
    try:
        trained = train_on(
            config, split.train, validation=split.validation, folder=run, device=device, workers=workers,
            provenance={"split": asdict(settings)},
        )  # fmt: skip
    except KeyboardInterrupt:
        if is_first_process():
            logger.warning("%s: interrupted. %s", run, how_to_continue(run))
        raise
    return split, trained
