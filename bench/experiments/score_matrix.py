"""The losses of dissim_retrieval on any matrix of scores, in plain PyTorch, for scores that are no head's.

The cosine is compared with the pair classifier under the same losses. A batch is small, so the matrix may be formed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from dissim_retrieval.evaluation import cosine
from torch import Tensor, nn


class CosineScore(nn.Module):
    """``bias + scale * (cosine - 1)``: two equal embeddings score the bias, which is learned, as in a head."""

    def __init__(self, *, scale: float, initial_bias: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.bias = nn.Parameter(torch.full((1,), float(initial_bias)))

    def forward(self, query: Tensor, reference: Tensor) -> Tensor:
        """[N, D], [M, D] -> [N, M]."""
        return self.bias + self.scale * (cosine(query, reference) - 1)


class ScoreMatrixLoss(nn.Module):
    """``loss(scores, positive, negative)`` of the batch's scores; `positive` and `negative` are bool [B, B]."""

    def __init__(self, score: nn.Module, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.score, self.loss = score, loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d."""
        same = labels[:, None] == labels
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        return self.loss(self.score(embeddings, embeddings), same & ~itself, ~same)


def hinge(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """HingeLoss with its defaults: margin 1, the two hardest negatives of each row, classes of equal weight."""
    hardest = scores.masked_fill(~negative, -torch.inf).topk(min(2, scores.shape[1]), dim=1).values
    kept = hardest[hardest.isfinite()]
    return ((1 - scores[positive]).clamp(min=0).mean() + (1 + kept).clamp(min=0).mean()) / 2


def log_sum_exp(scores: Tensor, positive: Tensor, negative: Tensor, *, alpha: float, beta: float) -> Tensor:
    """SoftMarginLoss with margin 1."""
    far = (alpha * (1 - scores)).masked_fill(~positive, -torch.inf).logsumexp(1)
    near = (beta * (1 + scores)).masked_fill(~negative, -torch.inf).logsumexp(1)
    return F.softplus(far).mean() / alpha + F.softplus(near).mean() / beta


def softmax(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """NCALoss with scale 1: the scale is that of the score."""
    among = scores.masked_fill(~(positive | negative), -torch.inf).logsumexp(1)
    same = scores.masked_fill(~positive, -torch.inf).logsumexp(1)
    return (among - same)[positive.any(1)].mean()
