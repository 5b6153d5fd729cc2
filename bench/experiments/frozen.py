"""Methods on features of a frozen backbone. Those that are trained have the same steps, batches and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from dissim_retrieval.evaluation import cosine
from dissim_retrieval.fit import fit_head, optimize, parameter_groups, start_projection
from dissim_retrieval.fit.head import SCALE
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.losses import NCALoss
from dissim_retrieval.projected import ProjectedHead
from dissim_retrieval.whitening import Whitening, within_class_whitening
from torch import Tensor

from .camera_pairs import CameraPairCosine, CameraPairHead, CameraPairLoss
from .data import Features
from .plan import Group
from .score_matrix import CosineScore, ScoreMatrixLoss, softmax
from .trial import Fitted, Method
from .tuning import Choice, Log

#: Rows of a step: all images of random identities, up to this many.
BATCH = 1024
DIMS = Choice((64, 128, 256, 512, 1024), 256)
#: The settings of every trained projection. A score without weights has no other parameter but a bias, which changes
#: nothing under softmax.
PROJECTION = {
    "dims": DIMS,
    "shrinkage": Log(0.001, 100, 1),
    "lr": Log(3e-4, 1e-1, 3e-3),
    "scale": Log(2, 64, 8),
}
WEIGHTED_PROJECTION = PROJECTION | {"head_lr": Log(1e-3, 1e-1, 1e-2)}
#: Share of the weights that start positive, for heads whose weights may be positive.
POSITIVE_SHARE = {"positive_share": Choice((0.0, 0.06, 0.12), 0.0)}
WEIGHT_ALONE = {"lr": Log(1e-3, 1, 1e-2), "scale": Log(4, 2048, 32)}
L1: dict[str, Any] = {"learn_weight": False}
NEGATIVE, SIGNED = {"sign": "negative"}, {"sign": "free"}


#: The defaults of `fit_head` and of its head.
FIT_HEAD_DEFAULTS: dict[str, Any] = {
    **{name: signature(fit_head).parameters[name].default for name in ("projection", "loss", "steps", "lr", "batch")},
    "scale": SCALE,
}


def _rows(features: Features) -> Tensor:
    return features.rows


def _fit_cosine(group: Group, train: Features, settings: Mapping[str, Any], seed: int) -> Fitted:
    return Fitted(_rows, cosine)


def _fit_l1(group: Group, train: Features, settings: Mapping[str, Any], seed: int) -> Fitted:
    return Fitted(_rows, DissimilarityHead(train.rows.shape[1], normalize=settings["normalize"]))


def _fit_pca(group: Group, train: Features, settings: Mapping[str, Any], seed: int, whiten: bool) -> Fitted:
    """Principal components. whiten: divided by their deviations, with the shrinkage of `within_class_whitening`."""
    rows = train.rows.double()
    centered = rows - rows.mean(0)
    variance, direction = torch.linalg.eigh(centered.T @ centered / len(rows))
    if whiten:
        direction = direction * (variance.clamp(min=0) + settings["shrinkage"] * variance.mean()).rsqrt()
    components = Whitening(rows.mean(0).float(), direction.float()).top(settings["dims"])
    return Fitted(lambda features: components(features.rows), cosine)


def _fit_whitening(group: Group, train: Features, settings: Mapping[str, Any], seed: int) -> Fitted:
    """Linear discriminant analysis: a test compares it with that of scikit-learn."""
    whitening = within_class_whitening(train.rows, train.labels, settings["shrinkage"]).top(settings["dims"])
    return Fitted(lambda features: whitening(features.rows), cosine)


def _fit_weight(
    group: Group, train: Features, settings: Mapping[str, Any], seed: int, head: Mapping[str, Any]
) -> Fitted:
    scorer = DissimilarityHead(train.rows.shape[1], **_head_options(settings, head))
    groups = [{"params": list(scorer.parameters()), "lr": settings["lr"]}]
    optimize(
        lambda rows: rows, NCALoss(scorer, scale=1.0), groups, train.rows, _consecutive(train.labels),
        steps=group.steps, batch=BATCH, draw=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return Fitted(_rows, scorer)


def _projection(
    train: Features, labels: Tensor, settings: Mapping[str, Any], draw: torch.Generator, head: Mapping[str, Any]
) -> ProjectedHead:
    options = _head_options(settings, head)
    return start_projection(train.rows, labels, settings["dims"], settings["shrinkage"], draw, options)


def _head_options(settings: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("scale", "positive_share") if name in settings} | head


def _groups(
    projected: ProjectedHead, loss: torch.nn.Module, train: Features, settings: Mapping[str, Any]
) -> list[dict]:
    projection, others = parameter_groups(projected, loss, train.rows, settings["lr"])
    return [projection, others | {"lr": settings.get("head_lr", others["lr"])}]


def _fit_projection(
    group: Group, train: Features, settings: Mapping[str, Any], seed: int, head: Mapping[str, Any] | None
) -> Fitted:
    """head: options of the head, or None for the cosine of the projected rows."""
    draw, labels = torch.Generator().manual_seed(seed), _consecutive(train.labels)
    projected = _projection(train, labels, settings, draw, head or {})
    loss: torch.nn.Module = NCALoss(projected.head, scale=1.0)
    if head is None:
        loss = ScoreMatrixLoss(CosineScore(scale=settings["scale"]), softmax)
    groups = _groups(projected, loss, train, settings)
    optimize(projected.project, loss, groups, train.rows, labels, steps=group.steps, batch=BATCH, draw=draw)
    return Fitted(lambda features: projected.project(features.rows), cosine if head is None else projected.head)


def _fit_head(group: Group, train: Features, settings: Mapping[str, Any], seed: int, **changes: Any) -> Fitted:
    """`fit_head` with its default options but for `changes`."""
    projected = fit_head(train.rows, train.labels, held_out=0, seed=seed, **changes)
    return Fitted(lambda features: projected.project(features.rows), projected.head)


def _fit_head_method(changes: Mapping[str, Any], *, ours: bool) -> Method:
    """Nothing is tuned. The space makes the options a part of the plan: with others, a file is not continued."""
    options = {name: value for name, value in changes.items() if name != "head"}
    used = FIT_HEAD_DEFAULTS | options | dict(changes.get("head", {}))
    return Method(
        partial(_fit_head, **changes), {name: Choice((value,), value) for name, value in used.items()}, ours
    )


def _fit_centered(
    group: Group, train: Features, settings: Mapping[str, Any], seed: int, head: Mapping[str, Any] | None
) -> Fitted:
    """As `_fit_projection`, after the mean of each camera's training rows is subtracted from its rows."""
    sums = train.rows.new_zeros(len(train.camera_names), train.rows.shape[1]).index_add(0, train.cameras, train.rows)
    means = sums / train.cameras.bincount(minlength=len(sums)).clamp(min=1)[:, None]

    def centered(features: Features) -> Features:
        return replace(features, rows=features.rows - means[features.cameras])

    fitted = _fit_projection(group, centered(train), settings, seed, head)
    return Fitted(lambda features: fitted.embed(centered(features)), fitted.scorer)


def _fit_camera_pairs(group: Group, train: Features, settings: Mapping[str, Any], seed: int, weights: bool) -> Fitted:
    """A projection, and a score with addends for each pair of cameras: to w and bias of a head, or to a cosine."""
    draw, labels = torch.Generator().manual_seed(seed), _consecutive(train.labels)
    projected = _projection(train, labels, settings, draw, {})
    cameras = len(train.camera_names)
    score = CameraPairHead(projected.head, cameras) if weights else CameraPairCosine(settings["scale"], cameras)
    loss = CameraPairLoss(score, settings["pair_shrinkage"])

    def project(rows: Tensor) -> Tensor:
        return torch.cat([projected.project(rows[:, :-1]), rows[:, -1:]], 1)

    groups = _groups(projected, loss, train, settings)
    optimize(project, loss, groups, _with_cameras(train), labels, steps=group.steps, batch=BATCH, draw=draw)
    return Fitted(lambda features: project(_with_cameras(features)), score)


def _with_cameras(features: Features) -> Tensor:
    """[N, D + 1]: the last column is the number of the camera."""
    return torch.cat([features.rows, features.cameras[:, None].to(features.rows)], 1)


def _consecutive(labels: Tensor) -> Tensor:
    return labels.unique(return_inverse=True)[1]


METHODS: dict[str, Method] = {
    "cosine": Method(_fit_cosine, {}),
    "L1": Method(_fit_l1, {"normalize": Choice((True, False), True)}),
    "PCA": Method(partial(_fit_pca, whiten=False), {"dims": DIMS}),
    "PCA, whitened": Method(partial(_fit_pca, whiten=True), {"dims": DIMS, "shrinkage": Log(1e-4, 10, 0.1)}),
    "within-class whitening (LDA)": Method(_fit_whitening, {"dims": DIMS, "shrinkage": Log(0.001, 100, 1)}),
    "projection, cosine": Method(partial(_fit_projection, head=None), PROJECTION),
    "projection, L1": Method(partial(_fit_projection, head=L1), PROJECTION),
    "projection, w <= 0": Method(partial(_fit_projection, head=NEGATIVE), WEIGHTED_PROJECTION, ours=True),
    "projection, w": Method(partial(_fit_projection, head=SIGNED), WEIGHTED_PROJECTION | POSITIVE_SHARE, ours=True),
    "fit_head, default settings": _fit_head_method({}, ours=True),
    "w <= 0 alone": Method(partial(_fit_weight, head=NEGATIVE), WEIGHT_ALONE, ours=True),
    "w alone": Method(partial(_fit_weight, head=SIGNED), WEIGHT_ALONE | POSITIVE_SHARE, ours=True),
}
#: Those that are compared under the other protocols.
SELECTED = ("cosine", "within-class whitening (LDA)", "projection, cosine", "projection, L1", "projection, w")

#: Changed options of `fit_head`, after its defaults. Compared on validation identities: this chooses the defaults.
FIT_HEAD_CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "lr 0.003": {"lr": 0.003},
    "scale 8": {"head": {"scale": 8.0}},
    "projection to 512": {"projection": 512},
    "w <= 0": {"head": NEGATIVE},
    "w not learned (L1)": {"head": L1},
}
#: On glyphs, where a fit takes minutes: what its larger batches change, and what its learned weights do.
FIT_HEAD_BATCH_CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    f"batches of {BATCH:,}": {"batch": BATCH},
    "w not learned (L1)": {"head": L1},
}


def _fit_head_methods(every: Mapping[str, Mapping[str, Any]]) -> dict[str, Method]:
    return {name: _fit_head_method(changes, ours=bool(changes)) for name, changes in every.items()}


FIT_HEAD_METHODS = _fit_head_methods(FIT_HEAD_CHANGES)
FIT_HEAD_BATCH_METHODS = _fit_head_methods(FIT_HEAD_BATCH_CHANGES)

CAMERA_PAIRS = WEIGHTED_PROJECTION | {"pair_shrinkage": Log(1e-6, 1, 1e-2)}
#: What knowing the cameras adds. They are compared apart: the others do not know them.
CAMERA_METHODS: dict[str, Method] = {
    **{name: METHODS[name] for name in ("projection, cosine", "projection, L1", "projection, w")},
    "projection, cosine, cameras centered": Method(partial(_fit_centered, head=None), PROJECTION),
    "projection, w, cameras centered": Method(
        partial(_fit_centered, head=SIGNED), WEIGHTED_PROJECTION | POSITIVE_SHARE, ours=True
    ),
    "projection, cosine, bias of camera pairs": Method(partial(_fit_camera_pairs, weights=False), CAMERA_PAIRS),
    "projection, w, w and bias of camera pairs": Method(
        partial(_fit_camera_pairs, weights=True), CAMERA_PAIRS | POSITIVE_SHARE, ours=True
    ),
}
