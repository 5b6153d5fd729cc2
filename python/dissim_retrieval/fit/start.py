"""From where a fit starts: the shrinkage of the whitening, and whether some weights start positive."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from ..held_out import average_precisions
from ..whitening import SHRINKAGES
from .identities import draw_parts, has_pairs
from .training import Training, start_projection

#: The fraction of the fitted identities on which the start is chosen.
CHOICE_FRACTION = 0.2
#: Rows of a step in the fits that are compared, at most.
CHOICE_BATCH = 2048
#: Tried besides the shrinkage that is best before training: the start is nearly a principal component analysis.
LARGE_SHRINKAGE = 10.0
#: The share of the weights that start positive, where any do. From a small shrinkage they only make a fit worse.
POSITIVE_SHARE = 0.25
#: The shrinkage where there are too few identities to choose it.
DEFAULT_SHRINKAGE = 0.1


class Start(NamedTuple):
    """A shrinkage, and the training with the options of the head."""

    shrinkage: float
    training: Training


def choose_start(rows: Tensor, identity: Tensor, training: Training, *, progress: bool = False) -> Start:
    """The start whose result ranks a part of the identities best, after training on the others.

    Args: rows [N, D] and identity int64 [N], numbers from 0, as of `Training.fit`.

    With too few identities to tell, DEFAULT_SHRINKAGE and no positive weights.
    """
    draw = torch.Generator().manual_seed(training.seed)
    fitted, checked = draw_parts(identity, CHOICE_FRACTION, draw)
    if not (has_pairs(identity[fitted]) and has_pairs(identity[checked])):
        return Start(DEFAULT_SHRINKAGE, training)
    fitted_rows, fitted_identity = rows[fitted], identity[fitted].unique(return_inverse=True)[1]

    def precision(scorer: Module) -> float:
        with torch.no_grad():
            return average_precisions(scorer, rows[checked], identity[checked]).mean().item()

    def before_training(shrinkage: float) -> float:
        draw = torch.Generator().manual_seed(training.seed)
        return precision(start_projection(fitted_rows, fitted_identity, training.projection, shrinkage, draw))

    def after_training(start: Start) -> float:
        shorter = replace(start.training, batch=min(training.batch, CHOICE_BATCH))
        name = f"start {1 + starts.index(start)} of {len(starts)}" if progress else None
        return precision(shorter.fit(fitted_rows, fitted_identity, start.shrinkage, progress=name))

    starts = _starts(max(SHRINKAGES, key=before_training), training)
    return max(starts, key=after_training)


def _starts(shrinkage: float, training: Training) -> list[Start]:
    """Those that are compared. The share of positive weights is compared if the options of the head leave it open."""
    starts = [Start(one, training) for one in dict.fromkeys((shrinkage, LARGE_SHRINKAGE))]
    head = training.head
    if "positive_share" not in head and head.get("sign", "free") == "free" and head.get("learn_weight", True):
        starts.append(Start(LARGE_SHRINKAGE, replace(training, head={**head, "positive_share": POSITIVE_SHARE})))
    return starts
