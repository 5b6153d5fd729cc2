"""The losses, compared with their definitions on a full matrix of scores, and with pytorch-metric-learning's."""

import pytest
import torch
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.interop import ScoreDistance
from dissim_retrieval.losses import (
    HingeLoss,
    InfoNCELoss,
    NCALoss,
    PrototypeLoss,
    SoftMarginLoss,
    SupConLoss,
)
from dissim_retrieval.projected import ProjectedHead
from dissim_retrieval.references import References, positive_pairs
from dissim_retrieval.triplet import TripletLoss
from pytorch_metric_learning import losses as pml
from torch.nn.functional import cross_entropy, linear, normalize

#: Three rows of one label, two of another, a row without a positive.
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4, 4])


def random_head(dim=8):
    """A head in float64 at which some pairs are active and others are not."""
    torch.manual_seed(0)
    head = DissimilarityHead(dim, scale=2.0).double()
    with torch.no_grad():
        head.weight.normal_()
        head.constrain_()
        head.bias.fill_(0.4)
    return head


def random_rows(count=10, dim=8, seed=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()


def plain_scores(head, rows, columns):
    """The score's definition, with the [N, M, D] tensor."""
    rows, columns = (normalize(x, dim=-1) * head.scale for x in (rows, columns))
    return linear((rows[:, None] - columns[None]).abs(), head.weight, head.bias[0])


def logsumexp_of(values, kept):
    return values.where(kept, -torch.inf).logsumexp(1)


def hinge(scores, positive, negative, margin=1.0, num_hard_negatives=2, balance="classes"):
    if num_hard_negatives is not None:
        hardest = scores.detach().masked_fill(~negative, -torch.inf).topk(num_hard_negatives).indices
        negative = negative & torch.zeros_like(negative).scatter(1, hardest, True)
    positive_hinge = (margin - scores).clamp(min=0)[positive]
    negative_hinge = (margin + scores).clamp(min=0)[negative]
    if balance == "classes":
        return (positive_hinge.mean() + negative_hinge.mean()) / 2
    return torch.cat([positive_hinge, negative_hinge]).mean()


def soft_margin(scores, positive, negative, margin=1.0, alpha=2.0, beta=40.0):
    hard_positive = ((alpha * (margin - scores)).exp() * positive).sum(1)
    hard_negative = ((beta * (margin + scores)).exp() * negative).sum(1)
    return hard_positive.log1p().mean() / alpha + hard_negative.log1p().mean() / beta


def info_nce(scores, positive, negative, scale=4.0):
    rows, columns = positive.nonzero(as_tuple=True)
    losses = [
        cross_entropy(scale * torch.cat([scores[i, j][None], scores[i][negative[i]]]), torch.tensor(0))
        for i, j in zip(rows, columns, strict=True)
    ]
    return torch.stack(losses).mean()


def sup_con(scores, positive, negative, scale=4.0):
    anchors = positive.any(1)
    log_probability = scale * scores - logsumexp_of(scale * scores, positive | negative)[:, None]
    return -((log_probability * positive).sum(1)[anchors] / positive.sum(1)[anchors]).mean()


def nca(scores, positive, negative, scale=4.0):
    anchors = positive.any(1)
    every = logsumexp_of(scale * scores, positive | negative)
    return (every - logsumexp_of(scale * scores, positive))[anchors].mean()


#: Loss, its definition on scores and masks, options of both.
CASES = [
    *(
        (HingeLoss, hinge, {"margin": 0.7, "num_hard_negatives": k, "balance": balance})
        for k in (None, 1, 3)
        for balance in ("classes", "pairs")
    ),
    (SoftMarginLoss, soft_margin, {}),
    (SoftMarginLoss, soft_margin, {"margin": 0.3, "alpha": 0.5, "beta": 5.0}),
    *((kind, plain, {"scale": s}) for kind, plain in ((InfoNCELoss, info_nce), (SupConLoss, sup_con), (NCALoss, nca))
      for s in (0.5, 20.0)),
]  # fmt: skip
cases = pytest.mark.parametrize(("kind", "plain", "options"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))


def assert_same_value_and_gradients(values, inputs):
    found = [(value, *torch.autograd.grad(value, inputs)) for value in values]
    assert all(plain.abs().max() > 1e-4 for plain in found[1][:2])  # the value and the gradient of the rows
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("remembered", [0, 7])
@cases
def test_loss_equals_its_definition(kind, plain, options, remembered):
    """Value and all gradients in float64, alone and with remembered rows of the same and of new labels."""
    head, rows = random_head(), random_rows()
    memory, memory_labels = random_rows(remembered, seed=2).detach(), torch.arange(remembered)
    references = References(rows, LABELS, memory=memory, memory_labels=memory_labels) if remembered else None
    columns, column_labels = torch.cat([rows, memory]), torch.cat([LABELS, memory_labels])
    same = LABELS[:, None] == column_labels
    itself = torch.eye(len(rows), len(columns), dtype=torch.bool)
    values = (
        kind(head, **options)(rows, LABELS, references),
        plain(plain_scores(head, rows, columns), same & ~itself, ~same, **options),
    )
    assert_same_value_and_gradients(values, [rows, head.weight, head.bias])


@pytest.mark.parametrize("scale", [0.5, 20.0])
def test_prototype_loss_is_cross_entropy(scale):
    head, rows = random_head(), random_rows()
    loss = PrototypeLoss(head, 5, scale=scale).double()
    plain = cross_entropy(scale * plain_scores(head, rows, loss.prototypes), LABELS)
    assert_same_value_and_gradients((loss(rows, LABELS), plain), [rows, loss.prototypes, head.weight, head.bias])


PML_LOSSES = [
    (InfoNCELoss, lambda distance: pml.NTXentLoss(temperature=0.25, distance=distance)),
    (SupConLoss, lambda distance: pml.SupConLoss(temperature=0.25, distance=distance)),
    (NCALoss, lambda distance: pml.NCALoss(softmax_scale=4.0, distance=distance)),
]


@pytest.mark.parametrize(("kind", "theirs"), PML_LOSSES, ids=["InfoNCE", "SupCon", "NCA"])
def test_loss_equals_that_of_pytorch_metric_learning(kind, theirs):
    """With a positive for every row, because theirs are means over all rows."""
    head, rows, labels = random_head(), random_rows(), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 1])
    values = kind(head, scale=4.0)(rows, labels), theirs(ScoreDistance(head))(rows, labels)
    assert_same_value_and_gradients(values, [rows, head.weight])


def test_soft_margin_equals_multi_similarity_up_to_its_base():
    """PML's loss has one threshold on s for both kinds of pairs; margin 0 has the same."""
    head, rows = random_head(), random_rows()
    theirs = pml.MultiSimilarityLoss(alpha=2.0, beta=30.0, base=0.0, distance=ScoreDistance(head))
    values = SoftMarginLoss(head, margin=0.0, alpha=2.0, beta=30.0)(rows, LABELS), theirs(rows, LABELS)
    assert_same_value_and_gradients(values, [rows])


def test_with_one_positive_a_row_the_softmax_losses_agree():
    head, rows, labels = random_head(), random_rows(), torch.arange(10) // 2
    values = [kind(head, scale=3.0)(rows, labels) for kind in (InfoNCELoss, SupConLoss, NCALoss)]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_soft_margin_approaches_the_hinge_on_the_hardest_negative():
    """Its negative part (labels all different) is larger by at most log(1 + M) / beta, for any beta."""
    head, rows = random_head(), random_rows()
    labels = torch.arange(len(rows))
    hardest = HingeLoss(head, num_hard_negatives=1)(rows, labels)
    excess = [(SoftMarginLoss(head, beta=beta)(rows, labels) - hardest).item() for beta in (1.0, 10.0, 100.0, 1e4)]
    bounds = [torch.tensor(1.0 + len(rows)).log().item() / beta for beta in (1.0, 10.0, 100.0, 1e4)]
    assert all(-1e-14 <= found <= bound for found, bound in zip(excess, bounds, strict=True))
    assert excess == sorted(excess, reverse=True) and excess[0] > 0.1 and excess[-1] < 1e-4


@cases
def test_loss_without_positives_or_negatives_is_finite(kind, plain, options):
    for labels in (torch.arange(10), torch.zeros(10, dtype=torch.int64)):
        head, rows = random_head(), random_rows()
        kind(head, **options)(rows, labels).backward()
        assert rows.grad.isfinite().all() and head.weight.grad.isfinite().all()


@cases
def test_loss_in_half_precision_is_near_float32(kind, plain, options):
    head, rows = random_head().float(), random_rows().float()
    loss = kind(head, **options)
    torch.testing.assert_close(loss(rows.bfloat16(), LABELS), loss(rows, LABELS), rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(rows.bfloat16(), LABELS).dtype == torch.float32


def test_loss_adds_the_penalty():
    head = DissimilarityHead(4, constraint="penalty", radius=1.0)
    with torch.no_grad():
        head.weight.mul_(3)
    free = DissimilarityHead(4, constraint="none")
    free.load_state_dict(head.state_dict())
    labels, embeddings = torch.tensor([0, 0, 1, 1]), torch.eye(4)
    for kind, _, options in CASES:
        difference = kind(head, **options)(embeddings, labels) - kind(free, **options)(embeddings, labels)
        torch.testing.assert_close(difference.item(), 4.0)


def test_positive_pairs_are_those_of_the_full_matrix():
    labels, reference_labels = torch.arange(12) % 5, torch.randint(7, (40,))
    reference_labels[3:15] = labels
    row, reference = positive_pairs(labels, reference_labels, torch.arange(3, 15))
    expected = labels[:, None] == reference_labels
    expected[torch.arange(12), torch.arange(3, 15)] = False
    assert torch.equal(torch.stack([row, reference]), expected.nonzero().T)


def test_triplet_is_batch_hard():
    """The mean over rows of the positive losses of the farthest positive and the nearest negative."""
    angles = torch.tensor([0.0, 0.5, 0.6, 1.6, 0.1])
    labels = torch.tensor([0, 0, 1, 1, 0])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [2.0], [1.0], [3.0]])
    distance = torch.cdist(normalize(embeddings), normalize(embeddings))
    same = labels[:, None] == labels
    hard = (distance * same).amax(1) - distance.masked_fill(same, torch.inf).amin(1) + 0.3
    torch.testing.assert_close(TripletLoss(margin=0.3)(embeddings, labels), hard[hard > 0].mean())


@pytest.mark.parametrize("kind", [kind for kind, _, options in CASES[5:]] + [lambda head: PrototypeLoss(head, 5)])
def test_an_empty_batch_has_loss_0(kind):
    rows = torch.zeros(0, 8, requires_grad=True)
    loss = kind(DissimilarityHead(8))(rows, LABELS[:0])
    loss.backward()
    assert loss.item() == 0 and rows.grad.shape == (0, 8)


@pytest.mark.parametrize("kind", [InfoNCELoss, SupConLoss, NCALoss, lambda head: PrototypeLoss(head, 5)])
def test_softmax_losses_leave_the_bias_as_it_is(kind):
    """Rounding errors must not train it: AdamW scales a gradient of 1e-17 up."""
    head = DissimilarityHead(8)
    kind(head)(random_rows().float(), LABELS).backward()
    assert head.bias.grad.item() == 0


def test_errors_name_the_argument():
    head, rows = DissimilarityHead(8), random_rows().float()
    for kind in (HingeLoss, NCALoss):
        loss = kind(head)
        with pytest.raises(TypeError, match="embeddings: expected a tensor, got ndarray"):
            loss(rows.detach().numpy(), LABELS)
        with pytest.raises(ValueError, match=r"embeddings: expected floats \[B, D\], got torch.float32 \[80\]"):
            loss(rows.flatten(), LABELS)
        with pytest.raises(ValueError, match=r"labels: expected int64 \[10\], .* got torch.int32 \[10\]"):
            loss(rows, LABELS.int())
        with pytest.raises(ValueError, match=r"labels: expected int64 \[10\], .* got torch.int64 \[9\]"):
            loss(rows, LABELS[:9])
    for wrong in (LABELS - 1, LABELS + 1):
        with pytest.raises(ValueError, match="labels: expected 0 to 4 for 5 classes, got"):
            PrototypeLoss(head, 5)(rows, wrong)
    for kind, name in ((NCALoss, "scale"), (SoftMarginLoss, "beta")):
        for wrong in (0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name}: expected a positive finite number, got {wrong}"):
                kind(head, **{name: wrong})
    for kind in (HingeLoss, SoftMarginLoss, lambda head, margin: TripletLoss(margin=margin)):
        for wrong in (float("nan"), float("-inf")):
            with pytest.raises(ValueError, match=f"margin: expected a finite number, got {wrong}"):
                kind(head, margin=wrong)


class OwnHead(DissimilarityHead):
    def forward(self, query, reference):
        return -super().forward(query, reference)


@pytest.mark.parametrize(
    "loss", [HingeLoss, SoftMarginLoss, InfoNCELoss, SupConLoss, NCALoss, PrototypeLoss, ScoreDistance]
)
def test_a_head_with_its_own_forward_is_an_error(loss):
    """The losses score by its weights, without calling it."""
    arguments = (5,) if loss is PrototypeLoss else ()
    message = (
        r"head: expected a DissimilarityHead, .* got a \w+ with its own forward\. Write a (loss|distance) of your own"
    )
    fitted = ProjectedHead(torch.zeros(8), torch.eye(8), OwnHead(8))
    for head in (OwnHead(8), torch.compile(OwnHead(8), backend="eager"), fitted):
        with pytest.raises(TypeError, match=message):
            loss(head, *arguments)
    loss(torch.compile(DissimilarityHead(8), backend="eager"), *arguments)
