"""Losses over a batch of embeddings and labels: hinge in the dissimilarity space, and triplet to compare with."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn

from dissim_kernels import fused_dissim_hinge_loss

from .head import DissimilarityHead


class HingeLoss(nn.Module):
    """Hinge loss of the head's scores over a batch's pairs, plus the head's norm penalty where it has one.

    Over the ordered pairs of different rows, y = +1 for equal labels and -1 otherwise: the mean of
    max(0, margin - y * score). Of a row's negatives only the `num_hard_negatives` highest-scoring are kept (None: all
    are averaged, most of them easy). balance "classes": positives and negatives weigh one half each; "pairs":
    every pair the same. Sampling and balance are ours; see DissimilarityHead.

    Memory: no [B, B, D] tensor, see `fused_dissim_hinge_loss`. For FSDP, shard this module or one that holds it, by
    `fully_shard`: after sharding the head alone its weights are whole only while the head itself is called.
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
    """The baseline: each row's hardest positive and negative in the batch, L2 distance of normalized embeddings.

    Batch hard after Hermans et al. (arXiv 1703.07737); both parts are pytorch-metric-learning's.
    """

    def __init__(self, *, margin: float = 0.2) -> None:
        super().__init__()
        distance = LpDistance(p=2, normalize_embeddings=True)
        self.mine = BatchHardMiner(distance=distance)
        self.loss = TripletMarginLoss(margin=margin, distance=distance)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d."""
        return self.loss(embeddings, labels, self.mine(embeddings, labels))
