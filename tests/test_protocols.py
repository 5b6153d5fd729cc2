"""The protocols of the field, each written as its reference evaluator defines it, and both ways to rank."""

import math

import pytest
import torch
from dissim_retrieval import DissimilarityHead, ProjectedHead, per_query_metrics, retrieval_metrics
from dissim_retrieval.evaluation import ranks
from dissim_retrieval.evaluation.scorers import check_classifier
from dissim_retrieval.head import scores_transformed_rows

WEIGHT = torch.tensor([-1.0, 2.0, -3.0])


def integer_head(dtype=torch.float32):
    """Its scores of integers are exact, so that many are equal."""
    head = DissimilarityHead(3, constraint="none", normalize=False)
    head.load_state_dict({"weight": WEIGHT, "bias": torch.tensor([2.0])})
    return head.to(dtype)


def case(seed, queries=29, gallery=71, ids=11, cameras=3):
    """Integer embeddings, labels and cameras of both sides. Label 0 has no query, the last two have no match."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(0, high, shape, generator=draw)

    embeddings = integers(5, queries, 3).float(), integers(5, gallery, 3).float()
    labels = 1 + integers(ids + 2, queries), integers(ids, gallery)
    return embeddings, labels, (integers(cameras, queries), integers(cameras, gallery))


def distances(embeddings):
    """Minus the scores, as lists."""
    query, gallery = embeddings
    return (-((query[:, None] - gallery).abs() @ WEIGHT + 2.0)).tolist()


def market1501(distances, q_pids, g_pids, q_cams, g_cams, max_rank=50):
    """CMC and mAP as torchreid's eval_market1501, and mINP as ReID-Survey's eval_func, with a stable sort."""
    curves, precisions, penalties = [], [], []
    for row, pid, camera in zip(distances, q_pids, q_cams, strict=True):
        order = sorted(range(len(row)), key=lambda g, row=row: row[g])
        hits = [int(g_pids[g] == pid) for g in order if not (g_pids[g] == pid and g_cams[g] == camera)]
        if not any(hits):
            continue
        found = [sum(hits[:rank]) for rank in range(1, len(hits) + 1)]
        curves.append([min(1, count) for count in found[:max_rank]])
        precisions.append(sum(found[place] / (place + 1) for place, hit in enumerate(hits) if hit) / sum(hits))
        last = max(place for place, hit in enumerate(hits) if hit)
        penalties.append(found[last] / (last + 1))
    count = len(curves)
    cmc = [sum(column) / count for column in zip(*curves, strict=True)]
    return cmc, sum(precisions) / count, sum(penalties) / count, count


def oxford_map(distances, q_pids, g_pids, q_cams, g_cams):
    """The official Market-1501 mAP: the area under precision over recall by trapezoids (Philbin et al.), junk images
    removed from the list, over all queries: one without a match counts 0."""
    total = 0.0
    for row, pid, camera in zip(distances, q_pids, q_cams, strict=True):
        good = {g for g in range(len(row)) if g_pids[g] == pid and g_cams[g] != camera}
        junk = {g for g in range(len(row)) if g_pids[g] == pid and g_cams[g] == camera}
        old_recall, old_precision, intersection, seen = 0.0, 1.0, 0, 0
        for g in sorted(range(len(row)), key=lambda g, row=row: row[g]):
            if g in junk:
                continue
            seen, intersection = seen + 1, intersection + (g in good)
            if not good:
                break
            recall, precision = intersection / len(good), intersection / seen
            total += (recall - old_recall) * (old_precision + precision) / 2
            old_recall, old_precision = recall, precision
    return total / len(distances)


@pytest.mark.parametrize("seed", range(4))
def test_market1501(seed):
    """Junk of label -1 is removed from the gallery, distractors of label 0 stay."""
    embeddings, labels, cameras = case(seed)
    junk = torch.arange(71) % 9 == 0
    gallery_labels = labels[1].masked_fill(junk, -1)
    assert (gallery_labels == 0).any()
    gallery, pids, views = embeddings[1][~junk], gallery_labels[~junk], cameras[1][~junk]
    table = distances((embeddings[0], gallery))
    sides = labels[0].tolist(), pids.tolist(), cameras[0].tolist(), views.tolist()
    cmc, mean_precision, penalty, count = market1501(table, *sides)
    found = retrieval_metrics(
        embeddings[0], gallery, integer_head(), labels[0], pids, query_cameras=cameras[0], reference_cameras=views
    )
    assert found["queries"] == count < 29 and found["skipped"] == 29 - count
    assert found["cmc"] == pytest.approx(cmc)
    assert found["mAP"] == pytest.approx(mean_precision) and found["mINP"] == pytest.approx(penalty)
    assert found["mAP_trapezoid"] * count / 29 == pytest.approx(oxford_map(table, *sides))


@pytest.mark.parametrize("levels", [(1, 2, 4, 8), (1, 10, 100, 1000)], ids=["CUB, Cars", "SOP"])
def test_recall_without_the_query_itself(levels):
    """As Proxy-Anchor's evaluation: the query is removed by its index, then a match among the first K counts."""
    (_, gallery), (_, labels), _ = case(7)
    gallery, labels = gallery[:40], labels[:40] % 4  # every label has matches
    expected = dict.fromkeys(levels, 0)
    for q, row in enumerate(distances((gallery, gallery))):
        order = sorted((g for g in range(40) if g != q), key=lambda g, row=row: row[g])
        for k in levels:
            expected[k] += any(labels[g] == labels[q] for g in order[:k])
    found = retrieval_metrics(
        gallery, gallery, integer_head(), labels, labels, exclude_index=torch.arange(40), recall_at=levels
    )
    for k in levels:
        assert found[f"recall@{k}"] == pytest.approx(expected[k] / 40)
    assert found["recall@1"] < 1, "with signed weights the first candidate may be of another label"


def test_inshop_ranks_queries_in_the_gallery():
    embeddings, labels, _ = case(8)
    known = torch.isin(labels[0], labels[1])
    levels = (1, 10, 20, 30, 40, 50)
    expected = dict.fromkeys(levels, 0)
    query, labels = embeddings[0][known], (labels[0][known], labels[1])
    table = distances((query, embeddings[1]))
    for row, label in zip(table, labels[0].tolist(), strict=True):
        order = sorted(range(71), key=lambda g, row=row: row[g])
        for k in levels:
            expected[k] += any(labels[1][g] == label for g in order[:k])
    found = retrieval_metrics(query, embeddings[1], integer_head(), *labels, recall_at=levels)
    for k in levels:
        assert found[f"recall@{k}"] == pytest.approx(expected[k] / len(table))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_is_ranked_as_its_scores_are(dtype, seed, monkeypatch):
    """fused_dissim_rank and sorts of the scores: identical numbers, ties included, in blocks of any size."""
    embeddings, labels, cameras = case(seed)
    embeddings, head = [rows.to(dtype) for rows in embeddings], integer_head(dtype)
    options = {"query_cameras": cameras[0], "reference_cameras": cameras[1], "exclude_index": torch.arange(29) - 1}
    expected = retrieval_metrics(*embeddings, lambda q, r: head(q, r), *labels, **options)
    unused = scores_transformed_rows(lambda *_: pytest.fail("scores were computed"))
    monkeypatch.setattr(DissimilarityHead, "forward", unused)
    assert retrieval_metrics(*embeddings, head, *labels, **options) == expected
    projected = ProjectedHead(torch.zeros(3, dtype=dtype), torch.eye(3, dtype=dtype), head)
    assert retrieval_metrics(*(rows.numpy() for rows in embeddings), projected, *labels, **options) == expected
    monkeypatch.setattr(ranks, "MATCHES_PER_BLOCK", 7)
    assert retrieval_metrics(*embeddings, head, *labels, **options) == expected


def test_random_scores_of_a_head_have_the_same_metrics():
    """Scores that are not exact: only those that are equal within rounding may be in another order."""
    draw = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(300, 48, generator=draw), torch.arange(300) % 25
    head = DissimilarityHead(48)
    head.load_state_dict({"weight": torch.randn(48, generator=draw), "bias": torch.ones(1)})
    options = {"exclude_index": torch.arange(300)}
    expected = retrieval_metrics(rows, rows, lambda q, r: head(q, r), labels, labels, **options)
    found = retrieval_metrics(rows, rows, head, labels, labels, **options)
    assert found.pop("cmc") == pytest.approx(expected.pop("cmc"), rel=1e-3)
    assert found == pytest.approx(expected, rel=1e-3)


def test_per_query_values_by_hand():
    """Scores -1, -2, -3, -4 of gallery rows of the labels 5, 6, 5, 7 for three queries.

    Label 5: hits at ranks 1 and 3, so AP = (1 + 2/3) / 2, INP = 2/3, and one of the first two is a match.
    Label 6: a hit at rank 2. Label 8: no match."""
    head = DissimilarityHead(1, constraint="none", normalize=False)
    head.load_state_dict({"weight": -torch.ones(1), "bias": torch.zeros(1)})
    gallery = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    found = per_query_metrics(torch.zeros(3, 1), gallery, head, [5, 8, 6], [5, 6, 5, 7])
    assert found.matches.tolist() == [2, 0, 1] and found.valid.tolist() == [True, False, True]
    assert found.first_rank.tolist() == [1, 0, 2]
    for name, values in (
        ("average_precision", [5 / 6, math.nan, 1 / 2]),
        ("average_precision_trapezoid", [((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2, math.nan, (0 + 1 / 2) / 2]),
        ("inverse_negative_penalty", [2 / 3, math.nan, 1 / 2]),
        ("average_precision_at_r", [1 / 2, math.nan, 0]),
        ("r_precision", [1 / 2, math.nan, 0]),
    ):
        assert getattr(found, name).tolist() == pytest.approx(values, nan_ok=True), name
    summary = found.summary(map_convention="trapezoid", max_rank=3)
    assert summary["mAP_mean"] == pytest.approx((5 / 6 + 1 / 2) / 2) and summary["cmc"] == [0.5, 1, 1]
    assert (summary["queries"], summary["skipped"], summary["mAP"]) == (2, 1, summary["mAP_trapezoid"])


def test_labels_above_float32_stay_distinct_for_a_head():
    labels = torch.tensor([2**24, 2**24 + 1, 2**62, 2**62 + 1])
    gallery = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 3, 0]])
    found = per_query_metrics(torch.zeros(4, 3), gallery, integer_head(), labels, labels)
    assert found.matches.tolist() == [1, 1, 1, 1]
    assert found.first_rank.tolist() == [4, 3, 2, 1], "the second weight is positive"


def test_a_nan_score_names_the_query_unless_it_is_excluded(monkeypatch):
    monkeypatch.setattr(ranks, "MATCHES_PER_BLOCK", 2)
    rows, labels = torch.ones(9, 3), torch.zeros(9, dtype=torch.int64)
    rows[7, 1] = torch.inf
    found = retrieval_metrics(rows, rows, integer_head(), labels, labels, exclude_index=torch.arange(9))
    assert found["queries"] == 9, "only the pair of row 7 and itself is NaN"
    with pytest.raises(ValueError, match="got a NaN score for query 7"):
        retrieval_metrics(rows, rows, integer_head(), labels, labels)


def test_no_query_is_an_error():
    with pytest.raises(ValueError, match="got none in 0 queries"):
        retrieval_metrics(torch.zeros(0, 3), torch.zeros(4, 3), integer_head(), [], [1, 2, 3, 4])


def test_compiled_heads_and_projected_ones_with_their_own_forward_are_told_apart():
    """The first are ranked by their weights, the second are called."""

    class Reversed(DissimilarityHead):
        def forward(self, query, reference):
            return -super().forward(query, reference)

    rows, labels = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    head, own = DissimilarityHead(4), Reversed(4)

    def metrics(scorer):
        return retrieval_metrics(rows, rows, scorer, labels, labels)

    compiled = torch.compile(head, backend="eager")
    check_classifier(compiled)
    assert metrics(compiled) == metrics(head)
    for scorer in (ProjectedHead(torch.zeros(4), torch.eye(4), own), torch.compile(own, backend="eager")):
        with pytest.raises(TypeError, match="head: expected a DissimilarityHead or ProjectedHead"):
            check_classifier(scorer)
        assert metrics(scorer) == metrics(lambda q, r: -head(q, r))
