"""Losses for a batch of embeddings and labels: hinge loss of the pair scores, and a triplet loss as a baseline."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn

from dissim_kernels import fused_dissim_hinge_loss

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
