"""Our score as a distance of pytorch-metric-learning, its losses called as ours, and the example scripts."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval.evaluation import retrieval_metrics
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.interop import PMLLoss, ScoreDistance
from dissim_retrieval.losses import HingeLoss
from dissim_retrieval.references import References
from pytorch_metric_learning import losses, miners, reducers, testers
from pytorch_metric_learning.distances import BatchedDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from dissim_kernels import fused_dissim_score, paired_dissim_score

LABELS = torch.arange(24) // 3


@pytest.fixture
def distance():
    torch.manual_seed(0)
    head = DissimilarityHead(8)
    torch.nn.init.normal_(head.weight)
    head.constrain_()
    return ScoreDistance(head)


def rows(count=24, seed=0):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_distance_is_the_score_and_larger_means_same(distance):
    query, reference = rows(5), rows(7, seed=1)
    sides = distance.head.transform(query), distance.head.transform(reference)
    operands = distance.head.weight, distance.head.bias[0]
    assert torch.equal(distance(query, reference), fused_dissim_score(*sides, *operands))
    assert torch.equal(distance(query), distance.head(query, query))
    pairs = distance.pairwise_distance(query, reference[:5])
    assert torch.equal(pairs, paired_dissim_score(sides[0], sides[1][:5], *operands))
    assert distance.is_inverted and torch.equal(distance.smallest_dist(pairs, dim=0).values, pairs.max())
    assert {id(p) for p in distance.parameters()} == {id(p) for p in distance.head.parameters()}


def test_contrastive_loss_on_it_is_the_hinge_over_all_pairs(distance):
    theirs = losses.ContrastiveLoss(pos_margin=1, neg_margin=-1, distance=distance, reducer=reducers.MeanReducer())
    ours = HingeLoss(distance.head, num_hard_negatives=None)
    found = []
    for value in (theirs(rows(), LABELS) / 2, ours(rows(), LABELS)):
        inputs = [distance.head.weight, distance.head.bias]
        found.append((value, *torch.autograd.grad(value, inputs)))
    torch.testing.assert_close(*found)


#: PML's CircleLoss, FastAPLoss, TupletMarginLoss and SignalToNoiseRatioContrastiveLoss need a distance of their own.
LOSSES = (
    losses.ContrastiveLoss,
    losses.GeneralizedLiftedStructureLoss,
    losses.IntraPairVarianceLoss,
    losses.LiftedStructureLoss,
    losses.MarginLoss,
    losses.MultiSimilarityLoss,
    losses.NCALoss,
    losses.NTXentLoss,
    losses.SupConLoss,
    losses.TripletMarginLoss,
)
#: Its AngularMiner and DistanceWeightedMiner demand L2 distances.
MINERS = (
    (miners.BatchEasyHardMiner, {}),
    (miners.BatchHardMiner, {}),
    (miners.MultiSimilarityMiner, {"epsilon": 1.0}),
    (miners.PairMarginMiner, {"pos_margin": 1, "neg_margin": -1}),
    (miners.TripletMarginMiner, {"margin": 0.5}),
)


@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
def test_losses_train_the_rows_and_the_head(distance, kind):
    x = rows()
    kind(distance=distance)(x, LABELS).backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0
    assert distance.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize(("kind", "options"), MINERS, ids=lambda value: getattr(value, "__name__", ""))
def test_miners_choose_by_the_score(distance, kind, options):
    chosen = kind(distance=distance, **options)(rows(), LABELS)
    assert len(chosen[0]) > 0
    assert losses.TripletMarginLoss(distance=distance)(rows(), LABELS, chosen).isfinite()


def test_batch_hard_miner_finds_the_lowest_positive_and_the_highest_negative(distance):
    x = rows()
    anchors, positives, negatives = miners.BatchHardMiner(distance=distance)(x, LABELS)
    scores, same = distance(x).detach(), LABELS[:, None] == LABELS
    itself = torch.eye(24, dtype=torch.bool)
    assert torch.equal(anchors, torch.arange(24))
    assert torch.equal(positives, scores.masked_fill(~same | itself, torch.inf).argmin(1))
    assert torch.equal(negatives, scores.masked_fill(same, -torch.inf).argmax(1))


def test_accuracy_calculator_and_tester_agree_with_our_metrics(distance):
    x = rows().detach()
    expected = retrieval_metrics(x, x, distance.head, LABELS, LABELS, exclude_index=torch.arange(24))
    names = ("precision_at_1", "mean_average_precision_at_r")  # those of clusters need faiss
    calculator = AccuracyCalculator(
        include=names, k="max_bin_count", knn_func=CustomKNN(distance), device=torch.device("cpu")
    )
    found = calculator.get_accuracy(x, LABELS)
    assert found["precision_at_1"] == pytest.approx(expected["recall@1"])
    assert found["mean_average_precision_at_r"] == pytest.approx(expected["MAP@R"])
    tester = testers.GlobalEmbeddingSpaceTester(
        accuracy_calculator=calculator, normalize_embeddings=False, dataloader_num_workers=0, data_device="cpu"
    )
    dataset = torch.utils.data.TensorDataset(x, LABELS)
    results = tester.test({"test": dataset}, 0, torch.nn.Identity())
    found = results["test"]["mean_average_precision_at_r_level0"]
    assert found == pytest.approx(expected["MAP@R"])


def test_batched_distance_forms_the_matrix_in_blocks(distance):
    x, blocks = rows().detach(), []
    BatchedDistance(distance, iter_fn=lambda mat, start, end: blocks.append(mat), batch_size=7)(x, x)
    # A call with few rows may compute a score by another form (E1, E7), whose last bits differ.
    torch.testing.assert_close(torch.cat(blocks), distance(x))


def test_loss_and_miner_are_called_as_our_losses(distance):
    x, loss, miner = rows(), losses.TripletMarginLoss(distance=distance), miners.BatchHardMiner(distance=distance)
    assert torch.equal(PMLLoss(loss)(x, LABELS), loss(x, LABELS))
    assert torch.equal(PMLLoss(loss, miner)(x, LABELS), loss(x, LABELS, miner(x, LABELS)))


@pytest.mark.parametrize("mined", [False, True])
def test_remembered_rows_are_references_without_pairs_of_a_row_with_itself(distance, mined):
    """As if the batch had been longer, with losses of the batch's rows only."""
    x, memory, memory_labels = rows(), rows(10, seed=1).detach(), torch.arange(10) // 2
    references = References(x, LABELS, memory=memory, memory_labels=memory_labels)
    options = {"pos_margin": 1, "neg_margin": -1, "distance": distance, "reducer": reducers.SumReducer()}
    miner = miners.PairMarginMiner(pos_margin=1, neg_margin=-1, distance=distance) if mined else None
    found = PMLLoss(losses.ContrastiveLoss(**options), miner)(x, LABELS, references)
    scores = distance(x, torch.cat([x, memory]))
    same = LABELS[:, None] == torch.cat([LABELS, memory_labels])
    positive = same & ~torch.eye(24, 34, dtype=torch.bool)
    torch.testing.assert_close(found, (1 - scores)[positive].relu().sum() + (1 + scores)[~same].relu().sum())


def run_example(name, *arguments):
    path = Path(__file__).parents[1] / "python" / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(*arguments)


def test_example_of_a_loss_on_our_score_learns(capsys):
    untrained, trained = run_example("pml_loss", 0), run_example("pml_loss")
    assert trained > untrained + 0.05
    assert "MAP@R of 50 new identities" in capsys.readouterr().out


def test_example_of_frozen_features_fits_saves_and_searches(tmp_path, capsys):
    draw = torch.Generator().manual_seed(0)
    labels = np.arange(120) // 4
    embeddings = torch.randn(30, 16, generator=draw)[labels] + 0.3 * torch.randn(120, 16, generator=draw)
    np.savez(
        tmp_path / "features.npz", embeddings=embeddings.numpy(), labels=np.array([f"person {i}" for i in labels])
    )
    run_example("frozen_features", str(tmp_path / "features.npz"), str(tmp_path / "head.safetensors"))
    check, *found = capsys.readouterr().out.splitlines()
    assert check.startswith("mAP ") and "against cosine's" in check and "against whitening's" in check
    assert len(found) == 5 and found[0].split("  ")[1:] == ["row 0", "person 0"]
