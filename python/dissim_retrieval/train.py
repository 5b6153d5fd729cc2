"""Training of a backbone and its pair classifier, with hinge or triplet loss: seeded and resumable."""

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
    """Everything that determines a training run, given its images.

    `margin` and the fields after it are those of HingeLoss and DissimilarityHead; the triplet baseline does not use
    them. The defaults were the best for the hinge loss on identities held out of the training half of the emoji, in
    90 s on one CPU core.
    """

    loss: Literal["hinge", "triplet"] = "hinge"
    """hinge trains backbone and pair classifier; triplet is the batch-hard baseline, which has no classifier."""
    backbone: str = "mobilenet_v2"
    """A name of models.BACKBONES; not used if a module is passed to train()."""
    dim: int = 512
    steps: int = 150
    identities: int = 64
    """Identities in a batch, each with `views` images."""
    views: int = 2
    lr: float = 1e-3
    """Maximum learning rate of the backbone (AdamW, one-cycle schedule)."""
    head_lr: float = 1e-2
    """Maximum learning rate of the classifier's weights and bias."""
    weight_decay: float = 1e-2
    """Weight decay of the backbone; the classifier has a norm constraint instead."""
    checkpoint_every: int = 100
    """Steps between checkpoints, if train() has a folder."""
    seed: int = 0
    triplet_margin: float = 0.2
    """Margin of the triplet loss, in L2 distances of normalized embeddings."""
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
    """The result of training: a backbone in eval mode and, with the hinge loss, its pair classifier on the CPU."""

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
    """Train on all of `images`, on a GPU if there is one. No augmentation: runs this short are better without.

    Args:
        backbone: your own module (images [B, 3, H, W] in [0, 1] -> [B, config.dim]), trained in place.
        folder: where checkpoints are written. An interrupted run continues from its last checkpoint, with the same
            result as without the interruption.
        line: the line of the progress bar, if several runs show one at the same time.

    Deterministic for the same config, images, machine and torch.get_num_threads(): the seed determines all batches,
    and every step seeds torch's generator. The caller's random state is restored.
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
            pixels = to_float_nhwc(images.read(rows), device)
            loss = run.step(pixels, images.labels[rows].to(device))
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if folder is not None and ((step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps):
                run.save(folder, step + 1)
    return Trained(run.backbone.eval(), None if run.head is None else run.head.cpu().eval(), config)


def load_trained(folder: Path, *, backbone: nn.Module | None = None) -> Trained:
    """The result of a finished train(..., folder=folder). backbone: your own module, if you trained one."""
    config = TrainConfig(**json.loads((folder / "config.json").read_text()))
    run = _Run(config, backbone or build_backbone(config.backbone, config.dim, pretrained=False), torch.device("cpu"))
    done = run.resume(folder)
    if done < config.steps:
        steps = f"{done} of {config.steps} steps"
        raise ValueError(f"folder: {folder} has an unfinished run ({steps}). Call train() with it first.")
    return Trained(run.backbone.eval(), None if run.head is None else run.head.eval(), config)


def plan_batches(labels: Tensor, config: TrainConfig) -> Tensor:
    """The image rows of every step, int64 [steps, identities * views]. Each step draws identities by the seed."""
    present = len(labels.unique())
    if config.identities > present:
        raise ValueError(f"identities: expected at most {present}, as many as there are, got {config.identities}.")
    size = config.identities * config.views
    sampler = MPerClassSampler(labels, config.views, size, config.steps * size)
    shared_generator = common_functions.NUMPY_RANDOM  # the sampler has no seed argument; it uses this generator
    common_functions.NUMPY_RANDOM = np.random.RandomState(config.seed)
    try:
        return torch.tensor(list(sampler)).view(config.steps, size)
    finally:
        common_functions.NUMPY_RANDOM = shared_generator


class _Run:
    """The state of a training run: one step of it, and its checkpoint."""

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
        """Load the checkpoint in `folder`, if there is one. Returns the number of steps that are done."""
        if not (folder / "checkpoint.pt").exists():
            return 0
        before = json.loads((folder / "config.json").read_text())
        now = json.loads(json.dumps(asdict(self.config)))
        if before != now:
            changed = sorted(key for key in now if before.get(key) != now[key])
            raise ValueError(f"folder: {folder} has a run with another {', '.join(changed)}. Choose a new folder.")
        checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint[name])
        return checkpoint["steps"]
