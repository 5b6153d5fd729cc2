"""fit_head: a projection and the pair classifier learned on stored embeddings, without the backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import ArrayLike, as_rows, check_rows_finite
from ..head import OPTIONS, DissimilarityHead
from ..held_out import check_held_out
from ..projected import ProjectedHead
from .identities import draw_parts, has_pairs
from .start import choose_start
from .training import LOSSES, Training

#: The scale of the head, if its options have none. It is the inverse temperature of the softmax.
SCALE = 16.0


def fit_head(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    projection: int = 256,
    loss: str = "softmax",
    head: Mapping[str, Any] | None = None,
    held_out: float = 0.2,
    steps: int = 40,
    lr: float = 1e-2,
    batch: int = 8192,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> ProjectedHead:
    """Learn a projection and a DissimilarityHead on embeddings of a frozen backbone (CLIP, DINOv2 or any other).

    The projection starts as within-class whitening; the weights of the head start equal. Both are then trained on all
    pairs of a batch, without an N x M matrix (AdamW, one-cycle schedule).

    Which start is best depends on the embeddings, so three are compared: the shrinkage whose whitening ranks best
    before training, a shrinkage of 10, and the same with a quarter of the weights positive. Each is trained on four
    fifths of the fitted identities, in batches of at most 2,048 rows, and ranks the others. All are fitted from the
    best one. ``fitted.head.positive_share`` tells whether some weights started positive. With too few identities to
    compare, the shrinkage is 0.1 and no weight starts positive.

    The comparison knows no cameras: rows of a query's own camera count as results. If your searches exclude them,
    pass ``head={"sign": "negative"}``.

    Args:
        embeddings: [N, D] numbers: a tensor, NumPy array or list. They are converted to float32.
        labels: [N] identities, integers or strings.
        projection: dimensions of the projected rows. At most D are used.
        loss: a name of LOSSES: "softmax", "supcon", "soft_margin" or "hinge", see `dissim_retrieval.losses`.
        head: options of the DissimilarityHead. Its scale is 16 by default. ``{"learn_weight": False}`` learns the
            projection alone, for a plain L1 distance, and ``{"sign": "negative"}`` a weighted one: FAISS can search
            with both. With these, or a `positive_share`, only the shrinkage is chosen.
        held_out: the fraction of the identities that are not fitted. On them the result is compared with cosine and
            with within-class whitening (`HeldOutCheck`). At most 5,000 rows are held out, in sets of any size: of two
            identities that have more together, 2,500 random ones of each; their other rows are not used. 0 fits all
            identities and compares nothing.
        steps: optimizer steps.
        lr: maximum learning rate of the projection, for rows of mean length 1.
        batch: rows of a step, at least 4. Up to this many embeddings, each step has all of them; above, all rows of
            random identities. Of two identities that have more rows together, it has batch // 2 random ones of each.
        seed: seed of the held-out identities, the rotation and the batches. The same input, seed, machine and number
            of threads give the same result. Torch's own generator is not used.

    Returns a scorer whose `check` is the comparison; ``print(fitted.check)`` says whether it beats the baselines.

    Raises ValueError or TypeError, naming the argument, for embeddings that are not finite, all equal or of another
    shape, labels without two identities or without two rows of one, and options out of range; FloatingPointError if
    the loss or the result is not finite.

    Cost: up to four fits of `steps` steps, three of them in batches of at most 2,048 rows. A step takes some eight
    scorings of batch x batch pairs. In addition up to nine whitenings, of some 10 D^3 operations each, and up to
    twenty rankings of at most 5,000 rows. Memory: a few times the embeddings, and two bits per pair of a batch.
    """
    _check_options(loss, head, lr, projection=(projection, 1), steps=(steps, 1), batch=(batch, 4))
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out: expected a fraction from 0 to below 1, got {held_out}.")
    rows, identity = _check_features(embeddings, labels)
    rows, identity = rows.to(device), identity.to(device)
    fitted, checked = draw_parts(identity, held_out, torch.Generator().manual_seed(seed))
    if held_out and not (has_pairs(identity[fitted]) and has_pairs(identity[checked])):
        parts = " and ".join(str(len(identity[part].unique())) for part in (fitted, checked))
        raise ValueError(
            "held_out: expected two or more identities to fit and as many to hold out, in each part one with two or"
            f" more embeddings, got {parts} of {len(identity.unique())} identities with held_out={held_out}. Pass"
            " another fraction, or 0, which fits all and compares nothing."
        )
    fitted_rows, fitted_identity = rows[fitted], identity[fitted].unique(return_inverse=True)[1]
    training = Training(projection, loss, steps, lr, batch, seed, {"scale": SCALE} | dict(head or {}))
    shrinkage, training = choose_start(fitted_rows, fitted_identity, training, progress=progress)
    scorer = training.fit(fitted_rows, fitted_identity, shrinkage, progress="fit" if progress else None)
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


def _check_features(embeddings: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Embeddings as float32 [N, D] and labels as numbers from 0, int64 [N], or an error that names the argument."""
    rows = as_rows("embeddings", embeddings)
    if rows.dim() != 2 or 0 in rows.shape:
        raise ValueError(f"embeddings: expected [N, D] with N and D above 0, got {list(rows.shape)}.")
    rows = rows.detach().float()
    check_rows_finite("embeddings", rows)
    if (rows == rows[0]).all():
        raise ValueError(f"embeddings: expected rows that differ, got {len(rows)} equal rows.")
    names = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if names.shape != (len(rows),):
        raise ValueError(f"labels: expected one for each of {len(rows)} embeddings, got shape {list(names.shape)}.")
    if names.dtype.kind not in "iuUS":
        raise TypeError(f"labels: expected integers or strings, got {names.dtype}.")
    identity = torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(-1))
    if not has_pairs(identity):
        raise ValueError(
            "labels: expected two or more identities, one of them with two or more embeddings, got"
            f" {len(identity.unique())} identities with at most {int(torch.bincount(identity).max())}."
        )
    return rows, identity
