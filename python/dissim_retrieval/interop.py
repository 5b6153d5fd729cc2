"""pytorch-metric-learning (PML) both ways: our score as one of its distances, its losses on our batches."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor, nn

from dissim_kernels import paired_dissim_score

from .head import DissimilarityHead, check_scored_by_weights
from .references import References


class ScoreDistance(BaseDistance):
    """The head's score as a distance of pytorch-metric-learning, for its losses, miners, reducers and testers.

    ``is_inverted`` is True: a larger score means "same", as for PML's CosineSimilarity. `fused_dissim_score` forms
    the score matrix [N, M], without an N x M x D tensor. PML's normalization is off, because the head has its own.
    The head is a submodule: ``loss.parameters()`` contains its weight and bias for an optimizer.

    PML's margins are then scores. For ContrastiveLoss, for example, pos_margin=1 and neg_margin=-1 give the hinge of
    HingeLoss(margin=1).

    A head whose scores do not follow from its weights, such as a subclass with its own forward, raises TypeError.
    """

    def __init__(self, head: DissimilarityHead) -> None:
        super().__init__(normalize_embeddings=False, is_inverted=True)
        check_scored_by_weights("head", head, "Write a distance of your own that calls it.")
        self.head = head

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Scores [N, M] of all pairs."""
        return self.head(query_emb, ref_emb)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Scores [N] of row-aligned pairs."""
        rows = self.head.transform(query_emb), self.head.transform(ref_emb)
        return paired_dissim_score(*rows, self.head.weight, self.head.bias[0])


class PMLLoss(nn.Module):
    """A loss of pytorch-metric-learning, with one of its miners if you like, called as our losses are.

    ``PMLLoss(loss, miner)(embeddings, labels)`` is ``loss(embeddings, labels, miner(embeddings, labels))``. With the
    `References` of several processes, each process computes the loss of the whole batch, because PML's reducers
    average over what they are given. The gradients are then those of one process, and every process has the cost of
    the whole batch. Remembered rows are passed as PML's ref_emb and ref_labels, together with the batch. Pairs of a
    row with itself are removed from the pairs or triplets of indices; losses that do not use these, such as NCALoss,
    ignore that.

    Args:
        loss: a loss that takes (embeddings, labels, indices_tuple, ref_emb, ref_labels), as PML's do.
        miner: a miner that takes (embeddings, labels, ref_emb, ref_labels).
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        """embeddings [B, D], labels int64 [B] -> 0-d."""
        if references is not None:
            embeddings, labels = references.embeddings, references.labels
        if references is None or references.memory is None:
            return self.loss(embeddings, labels, self.miner(embeddings, labels) if self.miner else None)
        all_rows = torch.cat([embeddings, references.memory.to(embeddings.dtype)])
        sides = labels, references.all_labels
        if self.miner:
            pairs = self.miner(embeddings, sides[0], all_rows, sides[1])
        else:
            pairs = loss_and_miner_utils.get_all_pairs_indices(*sides)
        itself = torch.arange(len(labels), device=labels.device)
        pairs = loss_and_miner_utils.remove_self_comparisons(pairs, itself, len(all_rows))
        return self.loss(embeddings, labels, pairs, all_rows, sides[1])
