"""Train with a loss and a miner of pytorch-metric-learning on our score, then test with its accuracy calculator.

python python/examples/pml_loss.py
"""

import torch
from dissim_retrieval import DissimilarityHead, ScoreDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN


def main(steps: int = 60) -> float:
    torch.manual_seed(0)
    labels = torch.arange(200).repeat_interleave(4)
    # In place of your images: 200 identities of 4 views, which differ between identities in 8 of 32 numbers only.
    images = torch.cat([torch.randn(200, 8)[labels] + 0.3 * torch.randn(800, 8), torch.randn(800, 24)], 1)

    backbone = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    distance = ScoreDistance(DissimilarityHead(32))
    loss = ContrastiveLoss(pos_margin=1, neg_margin=-1, distance=distance)  # the hinge on our scores
    miner = MultiSimilarityMiner(epsilon=1.0, distance=distance)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *loss.parameters()], lr=3e-3)  # with the head's weights
    for _ in range(steps):
        rows = (torch.randperm(150)[:32, None] * 4 + torch.arange(4)).flatten()  # 32 of the first 150 identities
        embeddings = backbone(images[rows])
        optimizer.zero_grad()
        loss(embeddings, labels[rows], miner(embeddings, labels[rows])).backward()
        optimizer.step()

    with torch.no_grad():
        calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), knn_func=CustomKNN(distance))
        accuracy = calculator.get_accuracy(backbone(images[600:]), labels[600:])  # identities not trained on
    print(f"MAP@R of 50 new identities: {accuracy['mean_average_precision_at_r']:.3f}")
    return accuracy["mean_average_precision_at_r"]


if __name__ == "__main__":
    main()
