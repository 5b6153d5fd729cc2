"""Joint training with batches of similar identities (graph sampling, Liao and Shao, CVPR 2022, arXiv 2104.01546)."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from dissim_retrieval.data import ImageSet
from dissim_retrieval.data.image_set import rows_by_label
from dissim_retrieval.embedding import embed_images, pixels_like
from dissim_retrieval.evaluation.scorers import Scorer
from dissim_retrieval.models import build_backbone
from dissim_retrieval.train import TrainConfig
from dissim_retrieval.train.objective import Objective
from dissim_retrieval.train.state import TrainingState
from torch import Tensor

from .trial import Fitted

#: Steps after which the similar identities are determined anew, with the network as it is then.
REFRESH = 25


def fit_on_similar_identities(config: TrainConfig, images: ImageSet) -> Fitted:
    """As `dissim_retrieval.train` with this config, but for the batches.

    A batch has an identity, drawn at random, and those most similar to it: by the head's score of one random image of
    each.
    """
    labels = images.labels.unique(return_inverse=True)[1]
    by_identity = [rows.numpy() for rows in rows_by_label(labels)]
    draw = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_backbone(config.backbone, config.dim)
    objective = Objective(config, network, num_identities=len(by_identity)).train()
    state = TrainingState(config, objective, torch.device("cpu"))
    embed = partial(embed_images, network, workers=0, progress=False)
    for step in range(config.steps):
        if step % REFRESH == 0:
            one_each = torch.tensor([draw.choice(rows) for rows in by_identity])
            similar = nearest_by_score(embed(images.take(one_each)), objective.head, config.identities)
        identities = similar[draw.integers(len(similar))].tolist()
        views = [draw.choice(r := by_identity[i], config.views, replace=len(r) < config.views) for i in identities]
        chosen = torch.from_numpy(np.concatenate(views))
        loss = objective(pixels_like(network, images.read(chosen)), labels[chosen])
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of step {step + 1} is {loss.item()}")
        state.update(loss)
    return Fitted(embed, objective.head)


@torch.no_grad()
def nearest_by_score(rows: Tensor, scorer: Scorer, count: int) -> Tensor:
    """For each of the rows [N, D], itself and those with the highest scores, `count` in all: int64 [N, count]."""
    scores = scorer(rows, rows).fill_diagonal_(torch.inf)
    return scores.topk(min(count, len(rows))).indices
