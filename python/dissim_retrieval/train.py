"""Train a backbone and the pair classifier on top of it together: seeded, resumable, either loss."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.utils import common_functions
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from .atomic import atomic_write
from .data import ImageSet
from .embedding import to_float_nhwc
from .head import DissimilarityHead
from .losses import HingeLoss, TripletLoss
from .models import build_backbone


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a training run, given its images.

    From `margin` on: see HingeLoss and DissimilarityHead; the triplet baseline has none of it. The defaults did best
    for hinge on identities held out of the training half of the emoji, in 90 s on one CPU core.
    """

    loss: Literal["hinge", "triplet"] = "hinge"
    """The pair classifier, trained with the backbone, or the batch-hard triplet baseline, which has no classifier."""
    backbone: str = "mobilenet_v2"
    """A name of models.BACKBONES; not used when a module is passed to train()."""
    dim: int = 512
    steps: int = 150
    identities: int = 64
    """Identities in a batch; each with `views` images."""
    views: int = 2
    lr: float = 1e-3
    """Peak rate of the backbone (AdamW, one cycle)."""
    head_lr: float = 1e-2
    """Peak rate of the classifier's weights and bias."""
    weight_decay: float = 1e-2
    """Of the backbone; the classifier has its norm constraint instead."""
    checkpoint_every: int = 100
    """Steps between checkpoints, where train() is given a folder."""
    seed: int = 0
    triplet_margin: float = 0.2
    """Of the L2 distance between normalized embeddings."""
    margin: float = 1.0
    num_hard_negatives: int | None = 2
    balance: Literal["classes", "pairs"] = "classes"
    constraint: Literal["project", "cap", "penalty", "none"] = "project"
    radius: float = 1.0
    sign: Literal["free", "negative"] = "free"
    normalize: bool = True
    scale: float = 8.0


@dataclass(frozen=True)
class Trained:
    """A backbone in eval mode and, after hinge training, its pair classifier, on the CPU."""

    backbone: nn.Module
    head: DissimilarityHead | None
    config: TrainConfig


def train(
    config: TrainConfig,
    images: ImageSet,
    *,
    backbone: nn.Module | None = None,
    folder: Path | None = None,
    progress: bool = True,
    line: int = 0,
) -> Trained:
    """Train on all of `images`, unaugmented (runs short enough for a CPU do better so); on a GPU where there is one.

    Args:
        backbone: your own module (images [B, 3, H, W] in [0, 1] -> [B, config.dim]), trained in place.
        folder: where checkpoints go. A run that was interrupted there continues, to the result it would have had.
        line: of the progress bar, where several runs show theirs below one another.

    Deterministic given config, images, machine and torch.get_num_threads(): batches are planned from the seed, and
    every step seeds torch's generator anew. The caller's random state is left as it was.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = plan_batches(images.labels, config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        run = _Run(config, backbone or build_backbone(config.backbone, config.dim), device)
        start = 0 if folder is None else run.resume(folder)
        steps = range(start, config.steps)
        title = f"train {config.loss}"
        for step in (bar := tqdm(steps, title, config.steps, initial=start, disable=not progress, position=line)):
            torch.manual_seed(config.seed * 1_000_003 + step)
            rows = plan[step]
            pixels = to_float_nhwc(images.images[rows], device)
            loss = run.step(pixels, images.labels[rows].to(device))
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if folder is not None and ((step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps):
                run.save(folder, step + 1)
    return Trained(run.backbone.eval(), None if run.head is None else run.head.cpu().eval(), config)


def load_trained(folder: Path, *, backbone: nn.Module | None = None) -> Trained:
    """The result of a finished train(..., folder=folder); your own backbone is passed again, to be filled."""
    config = TrainConfig(**json.loads((folder / "config.json").read_text()))
    run = _Run(config, backbone or build_backbone(config.backbone, config.dim, pretrained=False), torch.device("cpu"))
    done = run.resume(folder)
    if done < config.steps:
        steps = f"{done} of {config.steps} steps"
        raise ValueError(f"folder: {folder} holds an unfinished run ({steps}). Call train() with it first.")
    return Trained(run.backbone.eval(), None if run.head is None else run.head.eval(), config)


def plan_batches(labels: Tensor, config: TrainConfig) -> Tensor:
    """The image rows of every step, int64 [steps, identities * views]: identities anew each step, from the seed."""
    present = len(labels.unique())
    if config.identities > present:
        raise ValueError(f"identities: expected at most {present}, as many as there are, got {config.identities}.")
    size = config.identities * config.views
    sampler = MPerClassSampler(labels, config.views, size, config.steps * size)
    theirs = common_functions.NUMPY_RANDOM  # the sampler takes no seed of its own
    common_functions.NUMPY_RANDOM = np.random.RandomState(config.seed)
    try:
        return torch.tensor(list(sampler)).view(config.steps, size)
    finally:
        common_functions.NUMPY_RANDOM = theirs


class _Run:
    """What one step changes, and its checkpoint."""

    def __init__(self, config: TrainConfig, backbone: nn.Module, device: torch.device) -> None:
        self.config, self.head = config, None
        self.backbone = backbone.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        groups = [{"params": list(backbone.parameters()), "lr": config.lr}]
        if config.loss not in ("hinge", "triplet"):
            raise ValueError(f"loss: expected hinge or triplet, got {config.loss!r}")
        self.loss: nn.Module = TripletLoss(margin=config.triplet_margin)
        if config.loss == "hinge":
            self.head = DissimilarityHead(
                config.dim, constraint=config.constraint, radius=config.radius, sign=config.sign,
                normalize=config.normalize, scale=config.scale,
            ).to(device)  # fmt: skip
            self.loss = HingeLoss(
                self.head, margin=config.margin, num_hard_negatives=config.num_hard_negatives, balance=config.balance
            )
            groups.append({"params": list(self.head.parameters()), "lr": config.head_lr, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = OneCycleLR(self.optimizer, max_lr=rates, total_steps=config.steps, pct_start=0.2)

    def step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        loss = self.loss(self.backbone(pixels), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def _parts(self) -> dict:
        parts = {"backbone": self.backbone, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts if self.head is None else parts | {"head": self.head}

    def save(self, folder: Path, steps: int) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()} | {"steps": steps}
        with atomic_write(folder / "config.json") as file:
            file.write(json.dumps(asdict(self.config), indent=1).encode())
        with atomic_write(folder / "checkpoint.pt") as file:
            torch.save(state, file)

    def resume(self, folder: Path) -> int:
        """Take over the checkpoint in `folder`, if there is one; the number of steps it has behind it."""
        if not (folder / "checkpoint.pt").exists():
            return 0
        before = json.loads((folder / "config.json").read_text())
        now = json.loads(json.dumps(asdict(self.config)))
        if before != now:
            changed = sorted(key for key in now if before.get(key) != now[key])
            raise ValueError(f"folder: {folder} holds a run with another {', '.join(changed)}. Choose a new folder.")
        checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint[name])
        return checkpoint["steps"]
