"""DissimilarityHead: the classifier that scores a pair of embeddings in the dissimilarity space."""

from __future__ import annotations

import threading
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dissim_kernels import fused_dissim_score

CONSTRAINTS = ("project", "cap", "penalty", "none")
SIGNS = ("free", "negative")


class DissimilarityHead(nn.Module):
    """Scores of pairs: ``F.linear((t(query)[:, None] - t(reference)[None]).abs(), weight, bias[0])``, t = transform.

    A larger score means "same". The head is a scorer: query [n, D], reference [M, D] -> scores [n, M]. Its parameters
    are weight [D] and bias [1].

    Max-margin training with a constraint on the L2 norm of the weights is the method of Kiran et al.
    (arXiv 2412.08618); its abstract leaves the form of every choice below open, so they are ours:

    Args:
        constraint: what happens to the weights after every step of an optimizer that trains them, by a hook, without
            a call of yours. "project": their L2 norm is set back to `radius` exactly; "cap": a norm above `radius`
            is brought down to it (the weights may then shrink to 0 and learning stops); "penalty": nothing,
            `penalty()` is a term for the loss (HingeLoss adds it); "none": nothing.
        sign: "negative" keeps every weight <= 0, so that -score + bias is a weighted L1 distance and any L1 index
            serves it; "free" lets a difference also speak for "same".
        normalize: embeddings are L2-normalized and multiplied by `scale`; otherwise taken as they are, `scale`
            unused.
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
    ) -> None:
        super().__init__()
        for name, value, allowed in (("constraint", constraint, CONSTRAINTS), ("sign", sign, SIGNS)):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        for name, number in (("dim", dim), ("radius", radius), ("scale", scale)):
            if number <= 0:
                raise ValueError(f"{name}: expected a positive number, got {number}")
        self.constraint, self.radius, self.sign = constraint, radius, sign
        self.normalize, self.scale = normalize, scale
        # Every difference speaks against "same", all alike: minus an L1 distance. The bias is such that a pair
        # without any difference scores the usual margin.
        self.weight = nn.Parameter(torch.full((dim,), -radius / dim**0.5))
        self.bias = nn.Parameter(torch.ones(1))  # not 0-d, which FSDP does not shard
        _register(self)

    def __setstate__(self, state: dict) -> None:  # a copied or unpickled head is constrained too
        super().__setstate__(state)
        _register(self)

    def transform(self, embeddings: Tensor) -> Tensor:
        """The embeddings as the score sees them; an index may store these."""
        return F.normalize(embeddings, dim=-1) * self.scale if self.normalize else embeddings

    def forward(self, query: Tensor, reference: Tensor) -> Tensor:
        return fused_dissim_score(self.transform(query), self.transform(reference), self.weight, self.bias[0])

    @torch.no_grad()
    def constrain_(self) -> None:
        """Put the weights back where `sign` and `constraint` allow them.

        A hook calls it after every step of a torch optimizer; call it yourself where you change weights otherwise.
        Weights that the constraint leaves without a direction (all zero) restart at the initial one.
        """
        if self.sign == "negative":
            self.weight.clamp_(max=0)
        if self.constraint not in ("project", "cap"):
            return
        norm = self.weight.double().norm()
        if self.constraint == "project" and norm == 0:
            self.weight.fill_(-self.radius / len(self.weight) ** 0.5)
        elif self.constraint == "project" or norm > self.radius:
            self.weight.copy_(self.weight.double() * (self.radius / norm))

    def penalty(self) -> Tensor:
        """``(weight.norm() - radius)**2`` under constraint "penalty", else 0: a term for the loss, 0-d."""
        if self.constraint != "penalty":
            return self.weight.new_zeros(())
        return (self.weight.norm() - self.radius).square()

    def extra_repr(self) -> str:
        return (
            f"dim={len(self.weight)}, constraint={self.constraint!r}, radius={self.radius}, sign={self.sign!r}, "
            f"normalize={self.normalize}, scale={self.scale}"
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
