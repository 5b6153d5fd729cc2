"""TripletLoss: the baseline, of pytorch-metric-learning."""

from __future__ import annotations

from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner

from .interop import PMLLoss
from .losses import check_finite


class TripletLoss(PMLLoss):
    """The baseline: batch-hard triplet loss (Hermans et al., arXiv 1703.07737) on L2 distances.

    For each row it takes the hardest positive and the hardest negative of the batch, by the L2 distance of normalized
    embeddings. Miner and loss are those of pytorch-metric-learning.
    """

    def __init__(self, *, margin: float = 0.2) -> None:
        check_finite(margin=margin)
        distance = LpDistance(p=2, normalize_embeddings=True)
        super().__init__(TripletMarginLoss(margin=margin, distance=distance), BatchHardMiner(distance=distance))
