"""The metrics, compared with their definitions in plain Python and with pytorch-metric-learning."""

import math

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead
from dissim_retrieval.evaluation import KReciprocalScorer, negative_euclidean, retrieval_metrics
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator


def by_table(table):
    """A scorer that reads scores from a table [N, M]. query and reference are row numbers [n, 1] and [M, 1]."""
    return lambda query, reference: table[query[:, 0].long()][:, reference[:, 0].long()]


def rows(count):
    return torch.arange(count, dtype=torch.float64)[:, None]


def one_query(scores, matches, **options):
    """The metrics of one query whose gallery row j matches where matches[j]."""
    table = torch.tensor([scores])
    labels = torch.tensor([1 if match else 2 for match in matches])
    return retrieval_metrics(rows(1), rows(len(scores)), by_table(table), torch.tensor([1]), labels, **options)


def brute_force(table, labels, gallery_labels, cameras=None, gallery_cameras=None, exclude_index=None):
    """All metrics of each query by their definitions, None for a query without a match."""
    results = []
    for q, scores in enumerate(table.tolist()):
        pool = []
        for g, score in enumerate(scores):
            same_view = cameras is not None and labels[q] == gallery_labels[g] and cameras[q] == gallery_cameras[g]
            if not same_view and (exclude_index is None or exclude_index[q] != g):
                pool.append((-score, g))
        hits = [bool(gallery_labels[g] == labels[q]) for _, g in sorted(pool)]
        relevant = sum(hits)
        if not relevant:
            results.append(None)
            continue

        def precision(rank, hits=hits):
            return sum(hits[:rank]) / rank if rank else 1.0

        ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
        results.append(
            {
                **{f"recall@{k}": float(any(hits[:k])) for k in (1, 5, 10)},
                "mAP_mean": sum(precision(r) for r in ranks) / relevant,
                "mAP_trapezoid": sum((precision(r - 1) + precision(r)) / 2 for r in ranks) / relevant,
                "mINP": relevant / ranks[-1],
                "MAP@R": sum(precision(r) for r in ranks if r <= relevant) / relevant,
                "R-precision": precision(relevant),
                "cmc": [float(any(hits[:k])) for k in range(1, 51)],
            }
        )
    return results


def random_case(seed, queries=23, gallery=41, ids=9, cameras=3, levels=12):
    """Scores with many ties and some -inf, and labels that are not in the gallery."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(0, high, shape, generator=draw)

    table = integers(levels, queries, gallery).float()
    table[integers(20, queries, gallery) == 0] = -torch.inf
    return {
        "table": table,
        "labels": integers(ids + 2, queries),
        "gallery_labels": integers(ids, gallery),
        "cameras": integers(cameras, queries),
        "gallery_cameras": integers(cameras, gallery),
        "exclude_index": integers(gallery + 1, queries) - 1,
    }


@pytest.mark.parametrize("protocol", ["plain", "cameras", "exclude_index", "both"])
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_equals_its_definition(seed, protocol):
    case = random_case(seed)
    if protocol in ("plain", "exclude_index"):
        case["cameras"] = case["gallery_cameras"] = None
    if protocol in ("plain", "cameras"):
        case["exclude_index"] = None
    expected = brute_force(**case)
    found = retrieval_metrics(
        rows(len(case["table"])),
        rows(case["table"].shape[1]),
        by_table(case["table"]),
        case["labels"],
        case["gallery_labels"],
        query_cameras=case["cameras"],
        reference_cameras=case["gallery_cameras"],
        exclude_index=case["exclude_index"],
    )
    valid = [one for one in expected if one is not None]
    assert 0 < len(valid) < len(expected), "the case must hold queries with and without a match"
    assert (found["queries"], found["skipped"]) == (len(valid), len(expected) - len(valid))
    for name in valid[0]:
        if name != "cmc":
            assert found[name] == pytest.approx(sum(one[name] for one in valid) / len(valid), abs=1e-12), name
    assert found["cmc"] == pytest.approx(
        [sum(column) / len(valid) for column in zip(*(v["cmc"] for v in valid), strict=True)]
    )
    assert found["mAP"] == found["mAP_mean"]


def test_equals_pytorch_metric_learning():
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.randn(60, 4, generator=draw)
    labels = torch.arange(60) % 12
    table = -torch.cdist(embeddings, embeddings)

    def neighbours(query, k, reference, ref_includes_query):
        order = table.clone().fill_diagonal_(-torch.inf).topk(k, dim=1)
        return order.values, order.indices

    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision", "mean_average_precision_at_r", "r_precision"),
        k=59,
        knn_func=neighbours,
        device=torch.device("cpu"),
    )
    expected = calculator.get_accuracy(embeddings, labels, embeddings, labels, ref_includes_query=True)
    found = retrieval_metrics(rows(60), rows(60), by_table(table), labels, labels, exclude_index=torch.arange(60))
    assert found["recall@1"] == pytest.approx(expected["precision_at_1"])
    assert found["mAP_mean"] == pytest.approx(expected["mean_average_precision"])
    assert found["MAP@R"] == pytest.approx(expected["mean_average_precision_at_r"])
    assert found["R-precision"] == pytest.approx(expected["r_precision"])


def test_two_conventions_by_hand():
    """Hits at ranks 1, 3 and 4 of 5."""
    found = one_query([5.0, 4.0, 3.0, 2.0, 1.0], [True, False, True, True, False])
    assert found["mAP_mean"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert found["mAP_trapezoid"] == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3)
    assert found["mINP"] == pytest.approx(3 / 4)
    assert found["R-precision"] == pytest.approx(2 / 3)
    assert found["MAP@R"] == pytest.approx((1 + 2 / 3) / 3)
    named = one_query([5.0, 4.0, 3.0, 2.0, 1.0], [True, False, True, True, False], map_convention="trapezoid")
    assert named["mAP"] == found["mAP_trapezoid"] != found["mAP"]


@pytest.mark.parametrize("match_at, rank", [(0, 1), (1, 2), (2, 3)])
def test_equal_scores_rank_by_lower_gallery_row(match_at, rank):
    found = one_query([1.0, 1.0, 1.0], [g == match_at for g in range(3)])
    assert found["mAP"] == pytest.approx(1 / rank)


def test_nan_scores_raise_unless_they_are_excluded():
    table = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, math.nan]])
    labels = torch.zeros(3, dtype=torch.int64)
    arguments = rows(2), rows(3), by_table(table), labels[:2], labels
    with pytest.raises(ValueError, match="got a NaN score for query 1"):
        retrieval_metrics(*arguments)
    assert retrieval_metrics(*arguments, exclude_index=torch.tensor([0, 2]))["mAP"] == 1


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.numpy(),
        lambda x: x.numpy()[::-1].copy()[::-1],
        lambda x: x.numpy().astype(x.numpy().dtype.newbyteorder()),
        lambda x: x.tolist(),
    ],
    ids=["array", "negative strides", "other byte order", "list"],
)
def test_arrays_and_lists_give_what_tensors_give(convert):
    embeddings, labels, itself = torch.randn(6, 4), torch.arange(6) % 2, torch.arange(6)
    arguments = {"query_labels": labels, "reference_labels": labels, "exclude_index": itself}
    found, expected = (
        retrieval_metrics(as_(embeddings), as_(embeddings), torch.inner, **{k: as_(v) for k, v in arguments.items()})
        for as_ in (convert, lambda x: x)
    )
    assert found == expected


def test_labels_above_float32_stay_distinct():
    labels = torch.tensor([2**24, 2**24 + 1])
    found = retrieval_metrics(rows(2), rows(2), by_table(torch.tensor([[0.0, 1.0], [1.0, 0.0]])), labels, labels)
    assert found["recall@1"] == 0


@pytest.mark.parametrize("block", [1, 7, 23, 1000])
def test_blocks_do_not_change_results(block):
    case = random_case(5)
    arguments = (rows(23), rows(41), by_table(case["table"]), case["labels"], case["gallery_labels"])
    options = {
        "query_cameras": case["cameras"],
        "reference_cameras": case["gallery_cameras"],
        "exclude_index": case["exclude_index"],
    }
    assert retrieval_metrics(*arguments, **options, block=block) == retrieval_metrics(*arguments, **options)


def test_scorer_sees_no_more_than_a_block():
    seen = []

    def scorer(query, reference):
        seen.append((len(query), len(reference)))
        return torch.cdist(query, reference)

    retrieval_metrics(rows(10), rows(6), scorer, torch.arange(10), torch.arange(6), block=4)
    assert seen == [(4, 6), (4, 6), (2, 6)]


class Squared(torch.nn.Module):
    """A score of its own, with the attributes of a DissimilarityHead."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = -torch.ones(6), torch.zeros(1)

    def transform(self, rows):
        return rows

    def forward(self, query, reference):
        return (query[:, None] - reference).square() @ self.weight + self.bias


class Inverted(DissimilarityHead):
    def forward(self, query, reference):
        return -super().forward(query, reference)


@pytest.mark.parametrize("scorer", [Squared(), Inverted(6)], ids=lambda scorer: type(scorer).__name__)
def test_a_scorer_with_a_forward_of_its_own_is_called(scorer):
    draw = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(40, 6, generator=draw), torch.arange(40) % 8
    arguments = (embeddings, embeddings, labels, labels)
    expected = retrieval_metrics(*arguments[:2], lambda q, r: scorer(q, r), *arguments[2:])
    assert retrieval_metrics(*arguments[:2], scorer, *arguments[2:]) == expected
    assert retrieval_metrics(*arguments[:2], DissimilarityHead(6), *arguments[2:]) != expected
    with pytest.raises(TypeError, match="head: expected a DissimilarityHead or ProjectedHead, or a subclass"):
        KReciprocalScorer(embeddings, scorer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_l2_distance_of_half_precision_rows(dtype):
    query, reference = rows(3).to(dtype), rows(4).to(dtype)
    expected = negative_euclidean(query.float(), reference.float())
    assert torch.equal(negative_euclidean(query, reference), expected)


def test_errors_name_the_argument():
    labels, table = torch.tensor([0, 1]), torch.zeros(2, 2)
    good = (rows(2), rows(2), by_table(table), labels, labels)
    with pytest.raises(TypeError, match="query_labels: expected dtype int64"):
        retrieval_metrics(*good[:3], labels.float(), labels)
    with pytest.raises(ValueError, match=r"reference_labels: expected integers up to .*, got 9223372036854775808"):
        retrieval_metrics(*good[:4], np.array([0, 2**63], np.uint64))
    with pytest.raises(ValueError, match=r"reference_labels: expected shape \[2\]"):
        retrieval_metrics(*good[:4], labels[:1])
    with pytest.raises(ValueError, match="reference_cameras: expected cameras"):
        retrieval_metrics(*good, query_cameras=labels)
    with pytest.raises(ValueError, match="map_convention"):
        retrieval_metrics(*good, map_convention="oxford")
    with pytest.raises(ValueError, match="recall_at: expected ranks from 1, got 0"):
        retrieval_metrics(*good, recall_at=(0, 1))
    with pytest.raises(ValueError, match="max_rank: expected ranks from 1, got 0"):
        retrieval_metrics(*good, max_rank=0)
    with pytest.raises(ValueError, match="exclude_index: expected gallery rows below 2, or -1 for none, got 2"):
        retrieval_metrics(*good, exclude_index=[0, 2])
    with pytest.raises(ValueError, match="block"):
        retrieval_metrics(*good, block=0)
    with pytest.raises(ValueError, match=r"scorer: expected scores \[n, M\] = \[2, 2\], got \[2\]"):
        retrieval_metrics(*good[:2], lambda query, reference: torch.zeros(2), labels, labels)
    with pytest.raises(ValueError, match="none in 2 queries"):
        retrieval_metrics(*good[:3], labels, labels + 5)
