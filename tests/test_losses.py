"""The hinge loss, compared with its definition with the [B, B, D] tensor, and the triplet baseline."""

import pytest
import torch
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.losses import HingeLoss, TripletLoss
from torch.nn.functional import linear, normalize


def plain_hinge(head, embeddings, labels, margin, num_hard_negatives, balance):
    rows = normalize(embeddings, dim=-1) * head.scale
    score = linear((rows[:, None] - rows[None]).abs(), head.weight, head.bias[0])
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    negative = ~same
    if num_hard_negatives is not None:
        hardest = score.detach().masked_fill(same, -torch.inf).topk(num_hard_negatives).indices
        negative = negative & torch.zeros_like(same).scatter(1, hardest, True)
    positive_hinge = (margin - score).clamp(min=0)[positive]
    negative_hinge = (margin + score).clamp(min=0)[negative]
    if balance == "classes":
        return (positive_hinge.mean() + negative_hinge.mean()) / 2
    return torch.cat([positive_hinge, negative_hinge]).mean()


@pytest.mark.parametrize("balance", ["classes", "pairs"])
@pytest.mark.parametrize("num_hard_negatives", [None, 1, 3])
def test_hinge_equals_its_definition(num_hard_negatives, balance):
    """Value and all gradients in float64, at a bias where both active and inactive pairs exist."""
    torch.manual_seed(0)
    head = DissimilarityHead(8, scale=2.0).double()
    with torch.no_grad():
        head.weight.normal_()
        head.constrain_()
        head.bias.fill_(0.4)
    labels = torch.arange(6).repeat_interleave(2)
    found = []
    for loss in (
        HingeLoss(head, margin=0.7, num_hard_negatives=num_hard_negatives, balance=balance),
        lambda e, y: plain_hinge(head, e, y, 0.7, num_hard_negatives, balance),
    ):
        embeddings = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        value = loss(embeddings, labels)
        found.append((value, *torch.autograd.grad(value, [embeddings, head.weight, head.bias])))
    for ours, plain in zip(*found, strict=True):
        assert plain.abs().max() > 1e-3
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_hinge_adds_the_penalty():
    head = DissimilarityHead(4, constraint="penalty", radius=1.0)
    with torch.no_grad():
        head.weight.mul_(3)
    labels = torch.tensor([0, 0, 1, 1])
    embeddings = torch.eye(4)
    free = DissimilarityHead(4, constraint="none")
    free.load_state_dict(head.state_dict())
    difference = HingeLoss(head)(embeddings, labels) - HingeLoss(free)(embeddings, labels)
    torch.testing.assert_close(difference.item(), 4.0)


def test_triplet_is_batch_hard():
    """The mean over rows of the positive losses of the farthest positive and the nearest negative."""
    angles = torch.tensor([0.0, 0.5, 0.6, 1.6, 0.1])
    labels = torch.tensor([0, 0, 1, 1, 0])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [2.0], [1.0], [3.0]])
    distance = torch.cdist(normalize(embeddings), normalize(embeddings))
    same = labels[:, None] == labels
    hard = (distance * same).amax(1) - distance.masked_fill(same, torch.inf).amin(1) + 0.3
    torch.testing.assert_close(TripletLoss(margin=0.3)(embeddings, labels), hard[hard > 0].mean())
