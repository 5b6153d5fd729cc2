"""Scores with a bias, or weights and a bias, of each pair of cameras, shrunk to shared ones.

Rows are [N, D + 1]: the last column is the number of the camera.
"""

from __future__ import annotations

import torch
from dissim_retrieval.evaluation import cosine
from dissim_retrieval.head import DissimilarityHead
from torch import Tensor, nn

from dissim_kernels import fused_dissim_score

from .score_matrix import ScoreMatrixLoss, softmax


class CameraPairHead(nn.Module):
    """The score of a head whose weight and bias have an addend for each unordered pair of cameras.

    The addends are 0 at the start, and stay 0 for pairs without training images.
    """

    def __init__(self, head: DissimilarityHead, cameras: int) -> None:
        super().__init__()
        self.head, self.cameras = head, cameras
        self.weight = nn.Parameter(torch.zeros(cameras, cameras, len(head.weight)))  # used with first <= second
        self.bias = nn.Parameter(torch.zeros(cameras, cameras))

    def forward(self, query: Tensor, reference: Tensor) -> Tensor:
        """[N, D + 1], [M, D + 1] -> [N, M]."""
        sides = [(self.head.transform(rows[:, :-1]), _by_camera(rows)) for rows in (query, reference)]
        (left, left_rows), (right, right_rows) = sides
        scores = left.new_zeros(len(query), len(reference))
        for first, i in left_rows.items():
            for second, j in right_rows.items():
                pair = min(first, second), max(first, second)
                weight, bias = self.head.weight + self.weight[pair], self.head.bias[0] + self.bias[pair]
                scores[i[:, None], j] = fused_dissim_score(left[i], right[j], weight, bias)
        return scores

    def penalty(self) -> Tensor:
        """The sum of the squared addends, 0-d."""
        return self.weight.square().sum() + self.bias.square().sum()


class CameraPairCosine(nn.Module):
    """``scale * (cosine + bias)``, with a bias of each unordered pair of cameras, 0 at the start."""

    def __init__(self, scale: float, cameras: int) -> None:
        super().__init__()
        self.scale = scale
        self.bias = nn.Parameter(torch.zeros(cameras, cameras))  # used as bias + bias.T

    def forward(self, query: Tensor, reference: Tensor) -> Tensor:
        """[N, D + 1], [M, D + 1] -> [N, M]."""
        first, second = query[:, -1].long(), reference[:, -1].long()
        bias = (self.bias + self.bias.T)[first[:, None], second]
        return self.scale * (cosine(query[:, :-1], reference[:, :-1]) + bias)

    def penalty(self) -> Tensor:
        """The sum of the squared biases of pairs, 0-d."""
        return (self.bias + self.bias.T).triu().square().sum()


class CameraPairLoss(nn.Module):
    """The softmax loss of the score, plus ``shrinkage * penalty()``."""

    def __init__(self, score: CameraPairHead | CameraPairCosine, shrinkage: float) -> None:
        super().__init__()
        self.softmax, self.shrinkage = ScoreMatrixLoss(score, softmax), shrinkage

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings [B, D + 1], labels int64 [B] -> 0-d."""
        return self.softmax(embeddings, labels) + self.shrinkage * self.softmax.score.penalty()


def _by_camera(rows: Tensor) -> dict[int, Tensor]:
    """Camera -> its rows."""
    cameras = rows[:, -1].long()
    return {int(camera): (cameras == camera).nonzero()[:, 0] for camera in cameras.unique()}
