"""The training of a projection and a pair classifier on embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from ..head import DissimilarityHead
from ..losses import HingeLoss, NCALoss, SoftMarginLoss, SupConLoss
from ..projected import ProjectedHead
from ..whitening import within_class_whitening
from .identities import draw_batches

#: The losses of `fit_head`, by their names in TrainConfig. The memory of NCALoss does not grow with the rows of an
#: identity. The inverse temperature is that of the head, its `scale`.
LOSSES: dict[str, Callable[[DissimilarityHead], nn.Module]] = {
    "softmax": lambda head: NCALoss(head, scale=1.0),
    "supcon": lambda head: SupConLoss(head, scale=1.0),
    "soft_margin": SoftMarginLoss,
    "hinge": HingeLoss,
}
#: Maximum learning rate of the classifier.
HEAD_LR = 1e-2


@dataclass(frozen=True)
class Training:
    """How a projection and a head are trained: the options of `fit_head` with these names."""

    projection: int
    loss: str
    steps: int
    lr: float
    batch: int
    seed: int
    head: Mapping[str, Any] = field(default_factory=dict)

    def fit(self, rows: Tensor, identity: Tensor, shrinkage: float, *, progress: str | None = None) -> ProjectedHead:
        """From within-class whitening of rows [N, D] with identities int64 [N], numbers from 0.

        progress: the name of a progress bar, or None for none.
        """
        draw = torch.Generator().manual_seed(self.seed)
        scorer = start_projection(rows, identity, self.projection, shrinkage, draw, self.head)
        loss = LOSSES[self.loss](scorer.head)
        groups = parameter_groups(scorer, loss, rows, self.lr)
        optimize(
            scorer.project, loss, groups, rows, identity, steps=self.steps, batch=self.batch, draw=draw,
            progress=progress,
        )  # fmt: skip
        return scorer.eval().requires_grad_(False)


def start_projection(
    rows: Tensor,
    identity: Tensor,
    dim: int,
    shrinkage: float,
    draw: torch.Generator,
    head: Mapping[str, Any] | None = None,
) -> ProjectedHead:
    """Within-class whitening of the rows [N, D] to mean length 1, and a new classifier with the options `head`."""
    dim = min(dim, rows.shape[1])
    whitening = within_class_whitening(rows, identity, shrinkage).top(dim)
    # An L1 distance depends on the axes. In a random rotation it ranks nearly as L2 does; in that of the whitening,
    # where few axes have most of the variance, clearly worse.
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=draw)).Q.to(rows.device)
    length = whitening(rows).norm(dim=1).mean().clamp(min=torch.finfo(rows.dtype).tiny)
    classifier = DissimilarityHead(dim, **(head or {})).to(rows.device)
    return ProjectedHead(whitening.mean, whitening.matrix @ rotation / length, classifier)


def parameter_groups(scorer: ProjectedHead, loss: nn.Module, rows: Tensor, lr: float) -> list[dict]:
    """The projection and the parameters of `loss` with their maximum learning rates, for `optimize`.

    lr: as of `fit_head`: the same relative step whatever the unit of the rows [N, D].
    """
    unit = (rows - scorer.mean).norm(dim=1).mean().clamp(min=torch.finfo(rows.dtype).tiny).item()
    return [{"params": [scorer.projection], "lr": lr / unit}, {"params": list(loss.parameters()), "lr": HEAD_LR}]


def optimize(
    embed: Callable[[Tensor], Tensor],
    loss: nn.Module,
    groups: list[dict],
    rows: Tensor,
    identity: Tensor,
    *,
    steps: int,
    batch: int,
    draw: torch.Generator,
    progress: str | None = None,
) -> None:
    """Minimize ``loss(embed(rows), identity)`` over the parameters of `groups`, each with its maximum "lr".

    progress: the name of a progress bar, or None for none. Raises FloatingPointError if a loss or a parameter at the
    end is not finite.
    """
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rates = [group["lr"] for group in groups]
    warm_up = max(0.2, 1.5 / (steps + 1))  # OneCycleLR divides by 0 if the warm-up is one step
    schedule = OneCycleLR(optimizer, max_lr=rates, total_steps=steps + 1, pct_start=warm_up)
    plan = draw_batches(identity, batch, steps, draw)
    for step, chosen in enumerate(bar := tqdm(plan, progress, steps, disable=progress is None), 1):
        value = loss(embed(rows[chosen]), identity[chosen])
        number = value.item()
        if not math.isfinite(number):
            raise FloatingPointError(f"fit: expected a finite loss in step {step}, got {number}. Lower lr.")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix_str(f"loss {number:.3f}", refresh=False)
    if not all(parameter.isfinite().all() for group in groups for parameter in group["params"]):
        raise FloatingPointError(f"fit: expected finite parameters, got others after step {steps}. Lower lr.")
