"""DissimilarityHead: a linear classifier on |q - r| that scores pairs of embeddings."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dissim_kernels import fused_dissim_score

from .arrays import ArrayLike, as_rows

CONSTRAINTS = ("project", "cap", "penalty", "none")
SIGNS = ("free", "negative")
#: The options of a head, as `options()` returns them. TrainConfig has a field for each.
OPTIONS = (
    "constraint", "radius", "sign", "normalize", "scale", "learn_weight", "positive_share", "initial_bias",
)  # fmt: skip


def scores_transformed_rows(forward: Callable) -> Callable:
    """Mark a forward whose scores are those of `transform`, `weight` and `bias`. An overriding one has no mark."""
    forward.scores_transformed_rows = True  # type: ignore[attr-defined]
    return forward


class DissimilarityHead(nn.Module):
    """Scores of pairs: ``F.linear((t(query)[:, None] - t(reference)[None]).abs(), weight, bias[0])``, t = transform.

    A larger score means "same". The head maps query [n, D] and reference [M, D] to scores [n, M]. Its parameters are
    weight [D] and bias [1]. NumPy arrays and lists are converted to the head's dtype and device.

    Max-margin training with a constraint on the L2 norm of the weights is the method of Kiran et al.
    (arXiv 2412.08618). Its abstract does not specify the following choices, so they are ours:

    Args:
        constraint: what happens to the weights after every step of an optimizer that trains them. A hook does it; you
            need not call anything. "project": the L2 norm is set to `radius`. "cap": a norm above `radius` is reduced
            to it (the weights may then shrink to 0, and learning stops). "penalty": nothing, but `penalty()` is a
            term for the loss, which HingeLoss adds. "none": nothing.
        sign: "negative" keeps every weight <= 0. Then -score + bias is a weighted L1 distance, and any L1 index can
            search with it. "free" also allows positive weights, so that a difference can increase the score.
        normalize: L2-normalize the embeddings and multiply them by `scale`. If False, they are used as they are and
            `scale` has no effect.
        learn_weight: False keeps the weights as they start: minus an L1 distance, without learned weights. Optimizers
            then train the bias only.
        positive_share: the fraction of the dimensions whose weights start positive: the first ones. The others start
            negative.
        initial_bias: the bias at the start: the score of two equal embeddings.
    """

    def __init__(
        self,
        dim: int,
        *,
        constraint: str = "project",
        radius: float = 1.0,
        sign: str = "free",
        normalize: bool = True,
        scale: float = 8.0,
        learn_weight: bool = True,
        positive_share: float = 0.0,
        initial_bias: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("constraint", constraint, CONSTRAINTS), ("sign", sign, SIGNS)):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        for name, number in (("dim", dim), ("radius", radius), ("scale", scale)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name}: expected a positive finite number, got {number}")
        if not 0 <= positive_share <= 1:
            raise ValueError(f"positive_share: expected a number from 0 to 1, got {positive_share}")
        if positive_share and (sign == "negative" or not learn_weight):
            raise ValueError(
                f"positive_share: expected 0 with sign {sign!r} and learn_weight {learn_weight}, got {positive_share}"
            )
        if not math.isfinite(initial_bias):
            raise ValueError(f"initial_bias: expected a finite number, got {initial_bias}")
        self.constraint, self.radius, self.sign = constraint, radius, sign
        self.normalize, self.scale = normalize, scale
        self.learn_weight, self.positive_share, self.initial_bias = learn_weight, positive_share, initial_bias
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=learn_weight)
        self._reset_weight()
        self.bias = nn.Parameter(torch.full((1,), float(initial_bias)))  # [1]: FSDP does not shard 0-d parameters
        _register(self)

    @torch.no_grad()
    def _reset_weight(self) -> None:
        """Minus an L1 distance: every difference lowers the score equally, or raises it where it starts positive."""
        dim = len(self.weight)
        self.weight.fill_(-self.radius / dim**0.5)
        self.weight[: round(self.positive_share * dim)] *= -1

    def __setstate__(self, state: dict) -> None:  # so that a copied or unpickled head is constrained, too
        super().__setstate__(state)
        _register(self)

    def transform(self, embeddings: Tensor) -> Tensor:
        """The embeddings in the form that is scored, in their dtype. An index may store these.

        Half precision is normalized in float32, because the squares of its values overflow and underflow.
        """
        if not self.normalize:
            return embeddings
        exact = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        return (F.normalize(exact, dim=-1) * self.scale).to(embeddings.dtype)

    @scores_transformed_rows
    def forward(self, query: ArrayLike, reference: ArrayLike) -> Tensor:
        query, reference = as_rows("query", query, self.weight), as_rows("reference", reference, self.weight)
        return fused_dissim_score(self.transform(query), self.transform(reference), self.weight, self.bias[0])

    @torch.no_grad()
    def constrain_(self) -> None:
        """Change the weights so that they satisfy `sign` and `constraint`.

        A hook calls this after every step of a torch optimizer. Call it yourself if you change the weights in another
        way. If all weights are zero, they cannot be scaled to a norm, and are reset to the initial weights. Weights
        that are not learned stay as they are.
        """
        if not self.learn_weight:
            return
        if self.sign == "negative":
            self.weight.clamp_(max=0)
        if self.constraint not in ("project", "cap"):
            return
        norm = self.weight.double().norm()
        if self.constraint == "project" and norm == 0:
            self._reset_weight()
        elif self.constraint == "project" or norm > self.radius:
            self.weight.copy_(self.weight.double() * (self.radius / norm))

    def penalty(self) -> Tensor:
        """A term for the loss, 0-d: ``(weight.norm() - radius)**2`` with constraint "penalty", else 0."""
        if self.constraint != "penalty":
            return self.weight.new_zeros(())
        return (self.weight.norm() - self.radius).square()

    def options(self) -> dict:
        """The options of this head, to make another one: ``DissimilarityHead(dim, **head.options())``."""
        return {name: getattr(self, name) for name in OPTIONS}

    def extra_repr(self) -> str:
        return f"dim={len(self.weight)}, " + ", ".join(f"{name}={value!r}" for name, value in self.options().items())


def is_scored_by_weights(scorer: object) -> bool:
    """Whether its scores are those of `transform`, `weight` and `bias`: not of a subclass with its own forward.

    A ProjectedHead is if its head is, and what torch.compile made of a module if the module is.
    """
    scorer = getattr(scorer, "_orig_mod", scorer)
    marked = getattr(getattr(type(scorer), "forward", None), "scores_transformed_rows", False)
    inner = getattr(scorer, "head", None)
    return marked and (inner is None or is_scored_by_weights(inner))


def check_scored_by_weights(
    name: str,
    head: nn.Module,
    remedy: str = "Keep it in memory, and score with head(query, gallery).",
) -> None:
    """Raise TypeError for a subclass with its own forward, whose scores do not follow from the weights."""
    if not is_scored_by_weights(head):
        raise TypeError(
            f"{name}: expected a DissimilarityHead, whose scores follow from its weights, got a"
            f" {type(head).__name__} with its own forward. {remedy}"
        )


def check_storable(name: str, head: DissimilarityHead) -> None:
    """Raise TypeError for a subclass with scores of its own: a file has the options and the weights only."""
    check_scored_by_weights(name, head)
    if getattr(type(head), "transform", None) is not DissimilarityHead.transform:
        raise TypeError(
            f"{name}: expected a DissimilarityHead, of which options and weights are stored, got a"
            f" {type(head).__name__} with its own transform. Keep such a head in memory."
        )


_heads: weakref.WeakSet[DissimilarityHead] = weakref.WeakSet()
_heads_lock = threading.Lock()


def _register(head: DissimilarityHead) -> None:
    with _heads_lock:
        _heads.add(head)


def _constrain_trained_heads(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Runs after the step of any torch optimizer: constrains the heads whose weights it trains."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    with _heads_lock:
        heads = list(_heads)
    for head in heads:
        if id(head.weight) in trained:
            head.constrain_()


register_optimizer_step_post_hook(_constrain_trained_heads)
