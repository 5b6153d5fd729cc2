"""Methods that train the backbone: losses x scores, and the baselines of pytorch-metric-learning.

All have the same images, batches, steps, optimizer and schedule: those of `dissim_retrieval.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from multiprocessing import current_process
from typing import Any

import torch
from dissim_retrieval.data import ImageSet
from dissim_retrieval.demo import multi_similarity
from dissim_retrieval.embedding import embed_images
from dissim_retrieval.evaluation import cosine
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.interop import PMLLoss
from dissim_retrieval.losses import HingeLoss, NCALoss, SoftMarginLoss
from dissim_retrieval.train import TrainConfig, train
from dissim_retrieval.triplet import TripletLoss
from pytorch_metric_learning.losses import SupConLoss
from torch import nn

from . import score_matrix
from .plan import Group
from .trial import Fitted, Method
from .tuning import Choice, Linear, Log, Range

Settings = Mapping[str, Any]

#: The loss of `dissim_retrieval.train` with the defaults of TrainConfig. A single choice each: nothing tunes them.
DEFAULTS = "hinge, w, default settings"
DEFAULT_SETTINGS: dict[str, Range] = {
    name: Choice((getattr(TrainConfig, name),), getattr(TrainConfig, name))
    for name in ("lr", "head_lr", "scale", "initial_bias")
}
#: Learning rates of a pretrained backbone, and of one that starts from random weights.
PRETRAINED, FROM_SCRATCH = Log(3e-4, 5e-3, 1e-3), Log(1e-3, 1.5e-2, 1e-3)
MARGIN_LOSS = {"head_lr": Log(1e-3, 1e-1, 1e-2), "scale": Log(2, 60, 8), "initial_bias": Linear(0.5, 3.5, 1)}
#: Share of the weights that start positive, for heads whose weights may be positive.
POSITIVE_SHARE = {"positive_share": Choice((0.0, 0.12, 0.25, 0.4), 0.25)}
#: The spaces of the losses, from which `space_of` makes those of the methods. `methods` adds the learning rate of the
#: backbone.
SPACES: dict[str, dict[str, Range]] = {
    "hinge": MARGIN_LOSS,
    "log-sum-exp": MARGIN_LOSS | {"alpha": Log(0.25, 4, 2), "beta": Log(2, 80, 40)},
    "softmax": {"head_lr": Log(1e-3, 1e-1, 1e-2), "scale": Log(4, 96, 24)},
}
#: Options of the head for each score; None: the cosine.
SCORES: dict[str, dict[str, Any] | None] = {
    "w": {"sign": "free"},
    "w <= 0": {"sign": "negative"},
    "L1": {"learn_weight": False},
    "cosine": None,
}


def base_config(group: Group, seed: int, **changes: Any) -> TrainConfig:
    """What all trainings of a group have in common. Letters must not be mirrored."""
    return TrainConfig(
        backbone=group.backbone,
        dim=group.dim,
        steps=group.steps,
        identities=64,
        views=2,
        flip=0.0,
        seed=seed,
        **changes,
    )


def fit(config: TrainConfig, train_part: ImageSet, loss: nn.Module | None = None) -> Fitted:
    """Train with the loss, by default the one that the config names; without a head, the scorer is the cosine.

    On a GPU if there is one, with processes that read the images. A forked process cannot use it.
    """
    on_gpu = torch.cuda.is_available() and not current_process().daemon
    device, workers = (None, None) if on_gpu else ("cpu", 0)
    trained = train(config, train_part, loss=loss, device=device, workers=workers, progress=False)
    embed = partial(embed_images, trained.backbone, workers=workers, progress=False)
    return Fitted(embed, trained.head or cosine)


def space_of(loss: str, score: str) -> dict[str, Range]:
    """The settings of a loss on a score. Under softmax, scores without weights have no parameter but the bias, which
    changes nothing, so its learning rate is none of theirs."""
    space = SPACES[loss] | (POSITIVE_SHARE if score == "w" else {})
    if loss == "softmax" and score in ("L1", "cosine"):
        del space["head_lr"]
    return space


def _head_loss(loss: str, dim: int, settings: Settings, options: Mapping[str, Any]) -> nn.Module:
    chosen = {name: settings[name] for name in ("scale", "initial_bias", "positive_share") if name in settings}
    head = DissimilarityHead(dim, **chosen, **options)
    if loss == "hinge":
        return HingeLoss(head)
    if loss == "log-sum-exp":
        return SoftMarginLoss(head, alpha=settings["alpha"], beta=settings["beta"])
    return NCALoss(head, scale=1.0)


def _cosine_loss(loss: str, settings: Settings) -> nn.Module:
    score = score_matrix.CosineScore(scale=settings["scale"], initial_bias=settings.get("initial_bias", 1.0))
    if loss == "hinge":
        return score_matrix.ScoreMatrixLoss(score, score_matrix.hinge)
    if loss == "log-sum-exp":
        of_scores = partial(score_matrix.log_sum_exp, alpha=settings["alpha"], beta=settings["beta"])
        return score_matrix.ScoreMatrixLoss(score, of_scores)
    return score_matrix.ScoreMatrixLoss(score, score_matrix.softmax)


def build_loss(loss: str, score: str, dim: int, settings: Settings) -> nn.Module:
    """A loss of SPACES on a score of SCORES."""
    options = SCORES[score]
    return _cosine_loss(loss, settings) if options is None else _head_loss(loss, dim, settings, options)


def _fit(group: Group, train_part: ImageSet, settings: Settings, seed: int, loss: str, score: str) -> Fitted:
    rates = {name: settings[name] for name in ("lr", "head_lr") if name in settings}
    return fit(base_config(group, seed, **rates), train_part, build_loss(loss, score, group.dim, settings))


def _fit_defaults(group: Group, train_part: ImageSet, settings: Settings, seed: int) -> Fitted:
    return fit(base_config(group, seed, **settings), train_part)


def _fit_baseline(
    group: Group, train_part: ImageSet, settings: Settings, seed: int, build: Callable[[Settings], nn.Module]
) -> Fitted:
    return fit(base_config(group, seed, lr=settings["lr"]), train_part, build(settings))


def _triplet(settings: Settings) -> nn.Module:
    return TripletLoss(margin=settings["margin"])


def _supcon(settings: Settings) -> nn.Module:
    return PMLLoss(SupConLoss(temperature=settings["temperature"]))


#: Losses without weights: how to build them, and their spaces.
BASELINES: dict[str, tuple[Callable[[Settings], nn.Module], dict[str, Range]]] = {
    "triplet, batch-hard": (_triplet, {"margin": Linear(0.1, 0.8, 0.4)}),
    "multi-similarity": (
        multi_similarity,
        # In a first draw from wider ranges no trial was above the default, and those with its miner were far below.
        {"alpha": Log(0.5, 8, 2), "beta": Log(10, 80, 50), "base": Linear(0.5, 1.0, 0.8)},
    ),
    "SupCon": (_supcon, {"temperature": Log(0.03, 0.3, 0.1)}),
}  # fmt: skip


def methods(lr: Range, losses: Iterable[str] = SPACES, scores: Iterable[str] = SCORES) -> dict[str, Method]:
    """Losses on scores, and the baselines, with the learning rates of a kind of backbone."""
    found = {
        f"{loss}, {score}": Method(
            partial(_fit, loss=loss, score=score), {"lr": lr} | space_of(loss, score), ours=score in ("w", "w <= 0")
        )
        for loss in losses
        for score in scores
    }
    found[DEFAULTS] = Method(_fit_defaults, DEFAULT_SETTINGS, ours=True)
    for name, (build, space) in BASELINES.items():
        found[name] = Method(partial(_fit_baseline, build=build), {"lr": lr} | space)
    return found


#: The methods that `dissim demo` compares -> their names there.
IN_DEMO = {"hinge, w": "pair classifier", "hinge, L1": "plain L1", "multi-similarity": "multi-similarity"}
