"""Losses for a batch of embeddings and labels: hinge loss of the pair scores, and a triplet loss as a baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn

from dissim_kernels import fused_dissim_hinge_loss, fused_dissim_logsumexp, paired_dissim_score

from .head import DissimilarityHead


class HingeLoss(nn.Module):
    """Hinge loss of the head's scores over the pairs of a batch, plus the head's norm penalty if it has one.

    It is the mean of max(0, margin - y * score) over the ordered pairs of different rows, with y = +1 for equal
    labels and -1 otherwise. Only the `num_hard_negatives` highest-scoring negatives of a row are kept (None keeps
    all, most of which are easy). balance "classes" gives positives and negatives one half of the weight each; "pairs"
    gives every pair the same weight. Sampling and balance are our choices; see DissimilarityHead.

    Memory: no [B, B, D] tensor, see `fused_dissim_hinge_loss`. With FSDP, apply `fully_shard` to this module or to
    one that contains it. If only the head is sharded, its weights are complete only while the head itself is called.
    """

    def __init__(
        self,
        head: DissimilarityHead,
        *,
        margin: float = 1.0,
        num_hard_negatives: int | None = 2,
        balance: str = "classes",
    ) -> None:
        super().__init__()
        self.head, self.margin, self.num_hard_negatives, self.balance = head, margin, num_hard_negatives, balance

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d."""
        rows = self.head.transform(embeddings)
        loss = fused_dissim_hinge_loss(
            rows, rows, self.head.weight, self.head.bias[0], labels, labels,
            margin=self.margin, balance=self.balance, num_hard_negatives=self.num_hard_negatives,
            exclude_index=torch.arange(len(rows), device=rows.device),
        )  # fmt: skip
        return loss + self.head.penalty()


class SoftMarginLoss(nn.Module):
    """The soft-margin form of the hinge over a batch's pairs, as in the multi-similarity loss (Wang et al. 2019).

    With s the head's scores, for each row the mean over the batch of::

        log(1 + sum over positives of exp(alpha (margin - s))) / alpha
        + log(1 + sum over negatives of exp(beta (margin + s))) / beta

    As beta grows, the second part becomes the hinge on the row's hardest negative, max(0, margin + max s); as alpha
    grows, the first becomes that on its hardest positive. Plus the head's norm penalty where it has one.
    """

    def __init__(
        self, head: DissimilarityHead, *, margin: float = 1.0, alpha: float = 2.0, beta: float = 40.0
    ) -> None:
        super().__init__()
        _check_positive(alpha=alpha, beta=beta)
        self.head, self.margin, self.alpha, self.beta = head, margin, alpha, beta

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d."""
        rows = self.head.transform(embeddings)
        itself = torch.arange(len(rows), device=rows.device)
        loss = rows.new_zeros(())
        for among, scale in (("same", -self.alpha), ("different", self.beta)):
            value = fused_dissim_logsumexp(
                rows, rows, self.head.weight, self.head.bias[0], scale=scale, query_labels=labels,
                reference_labels=labels, among=among, exclude_index=itself,
            )  # fmt: skip
            loss = loss + F.softplus(value + abs(scale) * self.margin).mean() / abs(scale)
        return loss + self.head.penalty()


class SupConLoss(nn.Module):
    """Supervised contrastive loss over the head's scores (Khosla et al. 2020; InfoNCE where a row has one positive).

    For each row with a positive, with s the head's scores::

        log(sum over all other rows of exp(scale s)) - mean over its positives of scale s

    and the mean over these rows. scale is the inverse temperature. Plus the head's norm penalty where it has one.
    """

    def __init__(self, head: DissimilarityHead, *, scale: float = 8.0) -> None:
        super().__init__()
        _check_positive(scale=scale)
        self.head, self.scale = head, scale

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d; 0 where no row has a positive."""
        rows = self.head.transform(embeddings)
        itself = torch.arange(len(rows), device=rows.device)
        row, other = ((labels[:, None] == labels) & (itself[:, None] != itself)).nonzero(as_tuple=True)
        count = torch.bincount(row, minlength=len(rows))
        if not len(row):
            return rows.sum() * 0 + self.head.penalty()
        weight, bias = self.head.weight, self.head.bias[0]
        value = fused_dissim_logsumexp(rows, rows, weight, bias, scale=self.scale, among="all", exclude_index=itself)
        scores = paired_dissim_score(rows[row], rows[other], weight, bias).to(value.dtype)
        mean_score = torch.zeros_like(value).index_add(0, row, scores) / count.clamp(min=1)
        anchors = count > 0
        return (value - self.scale * mean_score)[anchors].mean() + self.head.penalty()


class PrototypeLoss(nn.Module):
    """Softmax cross-entropy over the head's scores of each row and learned class prototypes.

    Plain torch: ``F.cross_entropy(scale * head(embeddings, prototypes), labels)``, without the [B, C] matrix. The
    prototypes [num_classes, D] are parameters of the loss: give them to the optimizer. Plus the head's norm penalty
    where it has one.
    """

    def __init__(self, head: DissimilarityHead, num_classes: int, *, scale: float = 8.0) -> None:
        super().__init__()
        _check_positive(num_classes=num_classes, scale=scale)
        self.head, self.scale = head, scale
        self.prototypes = nn.Parameter(torch.randn(num_classes, len(head.weight)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, D], labels int64 [B] from 0 to num_classes - 1 -> 0-d."""
        rows, prototypes = self.head.transform(embeddings), self.head.transform(self.prototypes)
        weight, bias = self.head.weight, self.head.bias[0]
        value = fused_dissim_logsumexp(rows, prototypes, weight, bias, scale=self.scale, among="all")
        own = paired_dissim_score(rows, prototypes[labels], weight, bias).to(value.dtype)
        return (value - self.scale * own).mean() + self.head.penalty()


class TripletLoss(nn.Module):
    """The baseline: batch-hard triplet loss (Hermans et al., arXiv 1703.07737) on L2 distances.

    For each row it takes the hardest positive and the hardest negative of the batch, by the L2 distance of normalized
    embeddings. Miner and loss are those of pytorch-metric-learning.
    """

    def __init__(self, *, margin: float = 0.2) -> None:
        super().__init__()
        distance = LpDistance(p=2, normalize_embeddings=True)
        self.mine = BatchHardMiner(distance=distance)
        self.loss = TripletMarginLoss(margin=margin, distance=distance)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d."""
        return self.loss(embeddings, labels, self.mine(embeddings, labels))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value}. Choose one above 0.")
