"""k-reciprocal re-ranking and query expansion, compared with their published definitions on dense matrices."""

import math

import pytest
import torch
from dissim_retrieval import DissimilarityHead, ProjectedHead, retrieval_metrics
from dissim_retrieval.evaluation import KReciprocalScorer, cosine, expand_queries, k_reciprocal_rerank


def published(distances, k1, k2, lambda_value):
    """The re-ranked distances of all rows (Zhong et al. 2017) from a symmetric [B, B] table, with Python's sets."""
    count = len(distances)
    squared = [[d * d for d in row] for row in distances]
    normalized = [[d / max(row) for d in row] for row in squared]
    order = [sorted(range(count), key=lambda j, row=row: row[j]) for row in normalized]  # a stable sort

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    encodings = []
    for i in range(count):
        members = reciprocal(i, k1)
        expanded = set(members)
        for j in members:
            candidate = reciprocal(j, round(k1 / 2))
            if len(candidate & members) > 2 / 3 * len(candidate):
                expanded |= candidate
        weights = {j: math.exp(-normalized[i][j]) for j in expanded}
        encodings.append([weights.get(j, 0) / sum(weights.values()) for j in range(count)])
    means = []
    for i in range(count):
        nearest = [encodings[j] for j in order[i][:k2]]
        means.append([sum(column) / len(nearest) for column in zip(*nearest, strict=True)])
    result = []
    for i in range(count):
        row = []
        for j in range(count):
            smaller = sum(map(min, means[i], means[j]))
            larger = sum(map(max, means[i], means[j]))
            row.append((1 - lambda_value) * (1 - smaller / larger) + lambda_value * normalized[i][j])
        result.append(row)
    return torch.tensor(result, dtype=torch.float64)


def clustered(rows=60, clusters=9, dim=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % clusters
    centers = torch.randn(clusters, dim, generator=draw, dtype=torch.float64)
    return centers[labels] + 0.7 * torch.randn(rows, dim, generator=draw, dtype=torch.float64), labels


def head_of(weight, bias=0.4):
    head = DissimilarityHead(len(weight), constraint="none", normalize=False).double()
    head.load_state_dict({"weight": weight, "bias": torch.tensor([bias])})
    return head


def negative_head(dim=6):
    return head_of(-torch.linspace(0.2, 1.5, dim, dtype=torch.float64))


def table(scorer):
    numbers = torch.arange(len(scorer.rows))
    return scorer.distances(numbers, numbers)


@pytest.mark.parametrize(
    "k1, k2, lambda_value", [(20, 6, 0.3), (7, 3, 0.3), (5, 1, 0.0), (4, 9, 0.5), (59, 60, 0.3), (500, 6, 1.0)]
)
def test_equals_the_published_procedure_for_weights_of_one_sign(k1, k2, lambda_value):
    rows, _ = clustered()
    head = negative_head()
    distances = (rows[:, None] - rows).abs() @ -head.weight.detach()  # bias - score
    expected = published(distances.tolist(), k1, k2, lambda_value)
    found = table(KReciprocalScorer(rows, head, k1=k1, k2=k2, lambda_value=lambda_value))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_signed_weights_use_the_documented_distance():
    """d_ij = max(bias, best other score) - s_ij and d_ii = 0: each row divided by its own maximum, self first."""
    rows, _ = clustered(seed=1)
    weight = torch.tensor([-1.0, 0.8, -0.5, 0.9, -1.2, 0.3], dtype=torch.float64)
    scores = (rows[:, None] - rows).abs() @ weight + 0.4
    others = scores.clone().fill_diagonal_(-torch.inf)
    best = others.amax(1).clamp(min=0.4)
    assert (others.amax(1) > 0.4).any(), "a row that scores above the row itself"
    distances = (best[:, None] - scores).fill_diagonal_(0)
    expected = published(distances.tolist(), 20, 6, 0.3)
    torch.testing.assert_close(table(KReciprocalScorer(rows, head_of(weight))), expected, rtol=0, atol=1e-12)


def test_four_rows_by_hand():
    """Points 0, 1, 3, 7 on a line, k1 = 1, k2 = 1, lambda = 0. Neighbors: 0-1, 1-0, 3-1, 7-3, so 0 and 1 are
    reciprocal, 3 and 7 have only themselves. Normalized squared distances: of row 0, (1/7)**2; of row 1, (1/6)**2."""
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    found = table(KReciprocalScorer(rows, head_of(torch.tensor([-1.0], dtype=torch.float64)), k1=1, k2=1,
                                    lambda_value=0.0))  # fmt: skip
    first, second = math.exp(-1 / 49), math.exp(-1 / 36)
    zero, one = [1 / (1 + first), first / (1 + first)], [second / (1 + second), 1 / (1 + second)]
    jaccard = 1 - sum(map(min, zero, one)) / sum(map(max, zero, one))
    assert found[0].tolist() == pytest.approx([0, jaccard, 1, 1], abs=1e-15)
    assert found[3].tolist() == pytest.approx([1, 1, 1, 0], abs=1e-15)


def test_lists_are_the_stable_order_of_the_distances():
    rows, _ = clustered()
    query, gallery = rows[:13], rows[13:]
    expected = table(KReciprocalScorer(rows, negative_head()))[:13, 13:].sort(dim=1, stable=True)
    for k, block in ((5, 128), (47, 4)):
        found = k_reciprocal_rerank(query, gallery, negative_head(), k=k, block=block)
        assert torch.equal(found.indices, expected.indices[:, :k])
        # A call with few rows may compute a score by another form (E1, E7), whose last bits differ.
        torch.testing.assert_close(found.distances, expected.values[:, :k], rtol=0, atol=1e-14)


def test_copies_of_one_row_have_distance_0():
    scorer = KReciprocalScorer(torch.ones(4, 6, dtype=torch.float64), negative_head())
    assert torch.equal(table(scorer), torch.zeros(4, 4).double())


def test_metrics_rise_on_clusters():
    rows, labels = clustered(rows=180, clusters=12, dim=6, seed=3)
    numbers = torch.arange(180)
    options = {"query_labels": labels, "reference_labels": labels, "exclude_index": numbers}
    before = retrieval_metrics(rows, rows, negative_head(), **options)
    scorer = KReciprocalScorer(rows, negative_head())
    after = retrieval_metrics(numbers[:, None], numbers[:, None], scorer, **options)
    assert after["mAP"] > before["mAP"] + 0.02


def test_projected_heads_and_arrays_are_reranked():
    rows, _ = clustered()
    projection = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    fitted = ProjectedHead(rows.mean(0), projection, negative_head())
    found = k_reciprocal_rerank(rows[:5].numpy(), rows[5:].tolist(), fitted, k=3)
    projected = fitted.project(rows).detach()
    expected = k_reciprocal_rerank(projected[:5], projected[5:], negative_head(), k=3)
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_expansion_equals_its_definition(alpha):
    rows, _ = clustered()
    head = head_of(torch.tensor([-1.0, 0.8, -0.5, 0.9, -1.2, 0.3], dtype=torch.float64))
    query, gallery = rows[:7], rows[7:]
    found = expand_queries(query, gallery, head, k=4, alpha=alpha)
    for q, result in zip(query, found, strict=True):
        scores = [((q - r).abs() @ head.weight.detach()).item() + 0.4 for r in gallery]
        order = sorted(range(len(gallery)), key=lambda j, scores=scores: -scores[j])[:4]
        low, high = min(scores), max(0.4, *scores)
        weights = [((scores[j] - low) / (high - low)) ** alpha for j in order]
        expected = (q + sum(w * gallery[j] for w, j in zip(weights, order, strict=True))) / (1 + sum(weights))
        torch.testing.assert_close(result, expected)


def test_average_expansion_by_hand():
    """The two nearest of 0 are 1 and -2: the mean of all three is -1/3."""
    gallery = torch.tensor([[1.0], [9.0], [-2.0]], dtype=torch.float64)
    head = head_of(torch.tensor([-1.0], dtype=torch.float64))
    assert expand_queries(torch.zeros(1, 1).double(), gallery, head, k=2, alpha=0).item() == pytest.approx(-1 / 3)


def test_expansion_excludes_the_query_itself():
    rows, _ = clustered(rows=9)
    found = expand_queries(rows, rows, negative_head(), k=3, exclude_index=range(9))
    others = torch.cat([rows[:4], rows[5:]])
    torch.testing.assert_close(found[4:5], expand_queries(rows[4:5], others, negative_head(), k=3))


def test_errors_name_the_argument():
    rows, _ = clustered(rows=9)
    head = negative_head()
    for options, message in (
        ({"k1": 0}, "k1: expected at least 1"),
        ({"k2": 0}, "k2: expected at least 1"),
        ({"lambda_value": 1.5}, "lambda_value: expected a number from 0 to 1"),
        ({"k": 5}, "k: expected 1 to 4, the rows of the gallery, got 5"),
        ({"block": 0}, "block: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            k_reciprocal_rerank(rows[:5], rows[5:], head, **{"k": 2, **options})
    with pytest.raises(ValueError, match="embeddings: expected one row or more, got none"):
        KReciprocalScorer(rows[:0], head)
    with pytest.raises(ValueError, match=r"expected rows \[N, D\] and \[M, D\], got \[6\] and \[9, 6\]"):
        k_reciprocal_rerank(rows[0], rows, head, k=2)
    with pytest.raises(ValueError, match=r"query: expected rows \[N, D\], got \[6\]"):
        expand_queries(rows[0], rows, head)
    with pytest.raises(TypeError, match=r"head: expected a DissimilarityHead or .* with their forward, got function"):
        k_reciprocal_rerank(rows, rows, cosine, k=2)
    broken = rows.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"embeddings: expected finite .* in 1 of 9 rows, first in row 3"):
        KReciprocalScorer(broken, head)
    with pytest.raises(ValueError, match=r"gallery: expected finite .* in 1 of 9 rows, first in row 3"):
        expand_queries(rows, broken, head)
    with pytest.raises(ValueError, match="alpha: expected 0 or more"):
        expand_queries(rows, rows, head, alpha=-1)
    with pytest.raises(ValueError, match="k: expected at least 1"):
        expand_queries(rows, rows, head, k=0)
    with pytest.raises(TypeError, match=r"pass fitted.head and fitted.project\(embeddings\)"):
        expand_queries(rows, rows, ProjectedHead(rows.mean(0), torch.eye(6).double(), head))
