"""fit_head: a projection and the pair classifier learned on stored embeddings, without the backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from .arrays import ArrayLike, as_rows, check_rows_finite
from .head import OPTIONS, DissimilarityHead
from .held_out import average_precisions, check_held_out
from .losses import HingeLoss, NCALoss, SoftMarginLoss, SupConLoss
from .projected import ProjectedHead
from .whitening import SHRINKAGES, within_class_whitening

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
#: The shrinkage of the start where it cannot be chosen.
SHRINKAGE = 0.1
#: The fraction of the fitted identities on which it is chosen.
CHOICE_FRACTION = 0.2
#: Rows of held-out identities, at most: every one is ranked against all others.
MAX_CHECKED = 5000


def fit_head(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    projection: int = 256,
    loss: str = "softmax",
    head: Mapping[str, Any] | None = None,
    held_out: float = 0.2,
    steps: int = 40,
    lr: float = 3e-3,
    batch: int = 8192,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> ProjectedHead:
    """Learn a projection and a DissimilarityHead on embeddings of a frozen backbone (CLIP, DINOv2 or any other).

    The projection starts as within-class whitening, the head as minus an L1 distance. Both are then trained on all
    pairs of a batch at once, without an N x M matrix (AdamW, one-cycle schedule). The shrinkage of the whitening is
    the one of SHRINKAGES that ranks a fifth of the fitted identities best, after whitening by the others.

    Args:
        embeddings: [N, D] numbers: a tensor, NumPy array or list. They are converted to float32.
        labels: [N] identities, integers or strings.
        projection: dimensions of the projected rows. At most D are used.
        loss: a name of LOSSES: "softmax", "supcon", "soft_margin" or "hinge", see `dissim_retrieval.losses`.
        head: options of the DissimilarityHead. ``{"learn_weight": False}`` learns the projection alone, for a
            plain L1 distance.
        held_out: the fraction of the identities that are not fitted. On them the result is compared with cosine and
            with within-class whitening (`HeldOutCheck`). At most 5,000 rows are held out, in sets of any size: of two
            identities that have more together, 2,500 random ones of each; their other rows are not used. 0 fits all
            identities and compares nothing.
        steps: optimizer steps.
        lr: maximum learning rate of the projection, for rows of mean length 1.
        batch: rows of a step, at least 4. Up to this many embeddings, each step has all of them; above, all rows of
            random identities. Of two identities that have more rows together, it has batch // 2 random ones of each.
        seed: of the held-out identities, the rotation and the batches. The same input, seed, machine and number of
            threads give the same result. Torch's own generator is not used.

    Returns a scorer whose `check` is the comparison; ``print(fitted.check)`` says whether it beats the baselines.

    Raises ValueError or TypeError, naming the argument, for embeddings that are not finite or of another shape,
    labels without two identities or without two rows of one, and options out of range; FloatingPointError if the loss
    or the result is not finite.

    Cost of a step: some eight scorings of batch x batch pairs. Memory: a few times the embeddings, and two bits per
    pair of a batch.
    """
    _check_options(loss, head, lr, projection=(projection, 1), steps=(steps, 1), batch=(batch, 4))
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out: expected a fraction from 0 to below 1, got {held_out}.")
    rows, identity = check_features(embeddings, labels)
    rows, identity = rows.to(device), identity.to(device)
    draw = torch.Generator().manual_seed(seed)
    fitted, checked = _draw_parts(identity, held_out, draw)
    if held_out and not (_has_pairs(identity[fitted]) and _has_pairs(identity[checked])):
        parts = " and ".join(str(len(identity[part].unique())) for part in (fitted, checked))
        raise ValueError(
            "held_out: expected two or more identities to fit and as many to hold out, in each part one with two or"
            f" more embeddings, got {parts} of {len(identity.unique())} identities with held_out={held_out}. Pass"
            " another fraction, or 0, which fits all and compares nothing."
        )
    fitted_rows, fitted_identity = rows[fitted], identity[fitted].unique(return_inverse=True)[1]
    shrinkage = _choose_shrinkage(fitted_rows, fitted_identity, projection, draw)
    scorer = start_projection(fitted_rows, fitted_identity, projection, shrinkage, draw, head)
    trained_loss = LOSSES[loss](scorer.head)
    groups = parameter_groups(scorer, trained_loss, fitted_rows, lr)
    optimize(
        scorer.project, trained_loss, groups, fitted_rows, fitted_identity, steps=steps, batch=batch, draw=draw,
        progress=progress,
    )  # fmt: skip
    scorer.eval().requires_grad_(False)
    if held_out:
        scorer.check = check_held_out(scorer, rows, identity, fitted, checked, len(scorer.head.weight))
    return scorer


def _check_options(loss: str, head: Mapping[str, Any] | None, lr: float, **counts: tuple[int, int]) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {loss!r}.")
    for name in head or {}:
        if name not in OPTIONS:
            raise ValueError(f"head: expected options of DissimilarityHead ({', '.join(OPTIONS)}), got {name!r}.")
    DissimilarityHead(1, **(head or {}))  # raises for a wrong value
    for name, (value, minimum) in counts.items():
        if value < minimum:
            raise ValueError(f"{name}: expected at least {minimum}, got {value}.")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: expected a positive finite number, got {lr}.")


def check_features(embeddings: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Embeddings as float32 [N, D] and labels as numbers from 0, int64 [N], or an error that names the argument."""
    rows = as_rows("embeddings", embeddings)
    if rows.dim() != 2 or 0 in rows.shape:
        raise ValueError(f"embeddings: expected [N, D] with N and D above 0, got {list(rows.shape)}.")
    rows = rows.detach().float()
    check_rows_finite("embeddings", rows)
    names = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if names.shape != (len(rows),):
        raise ValueError(f"labels: expected one for each of {len(rows)} embeddings, got shape {list(names.shape)}.")
    if names.dtype.kind not in "iuUS":
        raise TypeError(f"labels: expected integers or strings, got {names.dtype}.")
    identity = torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(-1))
    if not _has_pairs(identity):
        raise ValueError(
            "labels: expected two or more identities, one of them with two or more embeddings, got"
            f" {len(identity.unique())} identities with at most {int(torch.bincount(identity).max())}."
        )
    return rows, identity


def _has_pairs(identity: Tensor) -> bool:
    """Whether there are pairs of one identity and pairs of two."""
    count = torch.bincount(identity)
    return int((count > 0).sum()) >= 2 and int(count.max()) >= 2


def _draw_parts(identity: Tensor, held_out: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """bool [N] each: the rows to fit, and at most MAX_CHECKED rows of the other identities, a fraction of all."""
    by_identity = _rows_by_identity(identity)
    order = torch.randperm(len(by_identity), generator=draw)[: round(held_out * len(by_identity))]
    drawn = _draw_rows(by_identity, order, MAX_CHECKED, draw)
    fitted = ~torch.isin(identity, order[: len(drawn)].to(identity.device))
    checked = torch.zeros_like(fitted)
    for rows in drawn:
        checked[rows] = True
    return fitted, checked


def _rows_by_identity(identity: Tensor) -> Sequence[Tensor]:
    return identity.argsort(stable=True).split(torch.bincount(identity).tolist())


def _draw_rows(by_identity: Sequence[Tensor], order: Tensor, limit: int, draw: torch.Generator) -> list[Tensor]:
    """All rows of the first identities of `order`, up to `limit`; of two with more, limit // 2 random rows each."""
    chosen = [by_identity[i] for i in order.tolist()]
    whole = int((torch.tensor([len(rows) for rows in chosen]).cumsum(0) <= limit).sum())
    if whole >= min(2, len(chosen)):
        return chosen[:whole]
    return [_up_to(rows, limit // 2, draw) for rows in chosen[:2]]


def _up_to(rows: Tensor, count: int, draw: torch.Generator) -> Tensor:
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=draw)[:count].to(rows.device)]


def _choose_shrinkage(rows: Tensor, identity: Tensor, dim: int, draw: torch.Generator) -> float:
    """The shrinkage whose start ranks a part of the identities best; SHRINKAGE if there are too few to tell."""
    fitted, checked = _draw_parts(identity, CHOICE_FRACTION, draw)
    if not (_has_pairs(identity[fitted]) and _has_pairs(identity[checked])):
        return SHRINKAGE
    found = {}
    for shrinkage in SHRINKAGES:
        start = start_projection(rows[fitted], identity[fitted], dim, shrinkage, draw)
        with torch.no_grad():
            found[shrinkage] = average_precisions(start, rows[checked], identity[checked]).mean().item()
    return max(found, key=lambda shrinkage: found[shrinkage])


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
    progress: bool = False,
) -> None:
    """Minimize ``loss(embed(rows), identity)`` over the parameters of `groups`, each with its maximum "lr".

    Raises FloatingPointError if a loss or a parameter at the end is not finite.
    """
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rates = [group["lr"] for group in groups]
    schedule = OneCycleLR(optimizer, max_lr=rates, total_steps=steps + 1, pct_start=0.2)
    plan = _batches(identity, batch, steps, draw)
    for step, chosen in enumerate(bar := tqdm(plan, "fit", steps, disable=not progress), 1):
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


def _batches(identity: Tensor, batch: int, steps: int, draw: torch.Generator) -> Iterator[Tensor | slice]:
    """The rows of each step: all, or those of random identities, up to `batch`."""
    if len(identity) <= batch:
        yield from [slice(None)] * steps
        return
    by_identity = _rows_by_identity(identity)
    for _ in range(steps):
        order = torch.randperm(len(by_identity), generator=draw)
        yield torch.cat(_draw_rows(by_identity, order, batch, draw))
