"""train(): the training loop, seeded and resumable."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..data import ImageSet
from ..embedding import embed_images, pixels_like
from ..evaluation import cosine, pick_queries
from ..evaluation.evaluate import mean_average_precision
from ..head import check_storable
from ..logs import get_logger, hide_bar
from ..models import Backbone, build_backbone
from ..provenance import as_provenance
from . import run_folder
from .augmentation import Augmentation
from .batches import IdentityBatches, count_identities
from .config import TrainConfig
from .objective import Objective
from .processes import Processes, join_processes
from .resuming import reading, resume
from .state import TrainingState, is_finite
from .trained import Trained, describe, load_weights

logger = get_logger(__name__)

#: A checkpoint is also written when the last one, or the start, is this many seconds ago, or 20 times the seconds
#: that it took to write it, if they are more.
CHECKPOINT_SECONDS = 60


def train(
    config: TrainConfig,
    images: ImageSet,
    *,
    validation: ImageSet | None = None,
    backbone: nn.Module | None = None,
    loss: nn.Module | None = None,
    folder: str | Path | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool | str = True,
    line: int = 0,
    provenance: Mapping | None = None,
) -> Trained:
    """Train on all of `images`.

    Args:
        validation: images of other identities. Their mAP is computed every `validate_every` steps and at the end, and
            the weights with the highest mAP are the result.
        backbone: your own module (images [B, 3, H, W] in [0, 1] -> [B, config.dim]), trained in place, without its
            parameters that do not require a gradient. After training, the same ones require it as before.
        loss: your own loss (embeddings [B, D], labels int64 [B]) -> 0-d, instead of config.loss. Its parameters are
            trained, too. If it contains a DissimilarityHead, that is the head of the result. The config of the result
            has the loss "own".
        folder: where settings, checkpoints, log.csv and the result are written. An interrupted run continues from its
            last checkpoint, with the same result as without the interruption.
        device: default: a GPU if there is one.
        workers: processes that read the images, see `ImageSet.batches`.
        progress: show a progress bar, on a terminal; a text is its title. line: its line, if several runs show one at
            the same time.
        provenance: what else to record about the images, for example their split; must fit in JSON.

    Batches, augmentation and dropout depend on (seed, step) only, so on a CPU the result is the same for the same
    config, images, machine and torch.get_num_threads(). The caller's random state is restored.

    Raises:
        FloatingPointError: the loss, a weight or a validation embedding is not finite. The last checkpoint stays.
        ValueError: a setting or an image set that cannot be trained on; a folder with another run, or with other
            files.
        BlockingIOError: another process trains in the folder.
    """
    folder = None if folder is None else Path(folder)
    if folder is not None:
        run_folder.check_folder(folder)
    if config.patience is not None and validation is None:
        raise ValueError(
            f"patience: expected validation images with patience={config.patience}, got none. Pass validation=, on"
            " the command line --val-fraction with 20 identities of two or more images, or omit patience."
        )
    if validation is not None and not pick_queries(validation, count=1):
        raise ValueError(
            "validation: expected two images of an identity that may match each other, got none in"
            f" {len(validation)} images. Images of one identity and camera do not, if the set has several cameras."
        )
    if validation is not None and validation.size != images.size:
        (height, width), (own_height, own_width) = images.size, validation.size
        raise ValueError(
            f"validation: expected images of {height}x{width} pixels, as those to train on, got"
            f" {own_height}x{own_width}. Load both with the same size=."
        )
    if loss is not None:
        config = replace(config, loss="own")
    processes = join_processes(device)
    first = processes.rank == 0
    num_identities = count_identities(images.labels)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([processes.device] if processes.device.type == "cuda" else []))
        torch.manual_seed(config.seed)
        network = backbone if backbone is not None else build_backbone(config.backbone, config.dim)
        if isinstance(network, Backbone):
            network.check_size(images.size)
        stack.callback(_set_trainable, {p: p.requires_grad for p in network.parameters()})  # undoes `freeze`
        objective = Objective(config, network, loss, num_identities=num_identities)
        objective.to(processes.device).train()
        own = {"own_backbone": backbone is not None, "own_loss": loss is not None}
        facts = describe(config, objective, images, validation, **own)
        facts |= as_provenance(provenance or {})
        state = TrainingState(config, objective, processes.device)
        if folder is not None and objective.head is not None:
            check_storable("loss", objective.head)
        if folder is not None and first:
            stack.enter_context(run_folder.lock(folder))
        if folder is not None:
            resume(state, folder, facts, {"data": images, "validation": validation}, write=first)
            if first:
                run_folder.clean(folder)
        batches = IdentityBatches(  # after all checks, since it tells how many identities a batch has
            images.labels, identities=config.identities, views=config.views, steps=config.steps, seed=config.seed
        )
        title = progress if isinstance(progress, str) else config.loss
        with tqdm(
            total=config.steps, initial=state.steps, desc=f"train {title}", position=line,
            disable=hide_bar(bool(progress)),
        ) as bar:  # fmt: skip
            if not state.finished:
                _run(state, batches, images, validation, folder if first else None, processes, workers, bar)
        if state.best is not None:
            load_weights(network, objective.head, state.best["weights"], source=f"step {state.best['steps']}")
        if folder is not None and first:
            run_folder.write_model(folder, objective.weights())
    return Trained.of(network, objective.head, config, facts)


def _run(
    state: TrainingState,
    batches: IdentityBatches,
    images: ImageSet,
    validation: ImageSet | None,
    folder: Path | None,
    processes: Processes,
    workers: int | None,
    bar: tqdm,
) -> None:
    """Do the steps that are not done yet."""
    config, objective = state.config, state.objective
    batch_size = batches.identities * batches.views
    rows = processes.rows(batch_size)
    plan = batches[state.steps :].part(rows)
    labels = images.labels.unique(return_inverse=True)[1]
    augment = Augmentation(config, images.size)
    # The statistics of batch normalization are those of each process; the result has those of the first.
    replica = objective if processes.size == 1 else DistributedDataParallel(objective, broadcast_buffers=False)
    due = time.perf_counter() + CHECKPOINT_SECONDS
    with nullcontext() if folder is None else run_folder.Log(folder, state.steps) as log:
        for step, (chosen, pictures) in enumerate(
            zip(plan, _read(images, plan, workers, state, folder), strict=True), state.steps
        ):
            begin = time.perf_counter()
            pixels = pixels_like(objective.backbone, pictures)
            pixels = augment(pixels, _seed(config.seed, step, "augmentation"), rows, batch_size)
            torch.manual_seed(_seed(config.seed, step, "dropout", processes.rank))
            loss = replica(pixels, labels[chosen].to(pixels.device), use_memory=step >= config.warmup * config.steps)
            value = processes.mean(loss)
            if not math.isfinite(value):
                raise FloatingPointError(_diverged(state, f"the loss of step {step + 1} is {value}", folder))
            state.update(loss)
            last = state.steps == config.steps
            mean_ap = None
            if validation is not None and (last or state.steps % config.validate_every == 0):
                _check_weights(state, folder)
                own = _validate(state, validation, workers, folder) if processes.rank == 0 else 0
                mean_ap = processes.broadcast(own)
                state.validated(mean_ap)
                logger.info("step %d: loss %.4f, validation mAP %.4f", state.steps, value, mean_ap)
            state.finished = last or state.out_of_patience
            if log is not None:
                rate = state.optimizer.param_groups[0]["lr"]
                log.write(state.steps, value, rate, mean_ap, round(time.perf_counter() - begin, 4))
            is_due = folder is not None and time.perf_counter() >= due
            if is_due or state.finished or state.steps % config.checkpoint_every == 0:
                _check_weights(state, folder)
                if folder is not None:
                    writing = time.perf_counter()
                    run_folder.write_checkpoint(folder, state.state_dict())
                    written = time.perf_counter()
                    due = written + max(CHECKPOINT_SECONDS, 20 * (written - writing))
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            bar.update()
            if state.finished:
                break


def _read(
    images: ImageSet, plan: IdentityBatches, workers: int | None, state: TrainingState, folder: Path | None
) -> Iterator[Tensor]:
    """The images of each batch. If some cannot be read, the steps before are saved."""
    with reading(folder, "data", images):
        try:
            yield from images.batches(plan, workers=workers)
        except Exception:  # between two steps, so that the state is that after a whole step
            if folder is not None and state.steps > 0 and is_finite(state.state_dict()):
                run_folder.write_checkpoint(folder, state.state_dict())
            raise


def _check_weights(state: TrainingState, folder: Path | None) -> None:
    if not is_finite(state.state_dict()):
        raise FloatingPointError(_diverged(state, f"a weight is not finite after step {state.steps}", folder))


def _validate(state: TrainingState, images: ImageSet, workers: int | None, folder: Path | None) -> float:
    """mAP of the head, or of the cosine without one, on all images."""
    objective = state.objective
    with reading(folder, "validation", images):
        rows = embed_images(objective.backbone, images, workers=workers, progress=False)
    if not rows.isfinite().all():  # finite weights may overflow
        what = f"an embedding of the validation images is not finite after step {state.steps}"
        raise FloatingPointError(_diverged(state, what, folder))
    scorer = cosine if objective.head is None else copy.deepcopy(objective.head).cpu().float()
    with torch.no_grad():
        return mean_average_precision(rows, scorer, images)


def _set_trainable(flags: Mapping[nn.Parameter, bool]) -> None:
    for parameter, needs_gradient in flags.items():
        parameter.requires_grad_(needs_gradient)


def _diverged(state: TrainingState, what: str, folder: Path | None) -> str:
    kept = folder is not None and (folder / run_folder.CHECKPOINT).exists()
    where = f" The checkpoint before that is in {folder}." if kept else ""
    return f"Training diverged: {what}.{where} Lower lr ({state.config.lr:g}) or check images and backbone."


def _seed(seed: int, step: int, use: Literal["augmentation", "dropout"], rank: int = 0) -> int:
    """A seed of torch's generator for one use of it in a step."""
    mixed = np.random.SeedSequence([seed, step, rank, ("augmentation", "dropout").index(use)])
    return int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1))
