"""The evaluation, compared with brute force, and the report: complete, self-contained, deterministic."""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
from dissim_retrieval.data import ImageSet
from dissim_retrieval.evaluation import cosine, evaluate, negative_euclidean, pick_queries, retrieval_metrics
from dissim_retrieval.evaluation.evaluate import mean_average_precision
from dissim_retrieval.evaluation.histogram import RECALL_GRID
from dissim_retrieval.evaluation.report import metric_table, metric_text, per_query_csv, write_report
from PIL import Image

FILES = {"metrics.json", "per_query.csv", "report.html", "report.png"}


def shapes(ids=12, cameras=3, size=16):
    """Images with a color for each identity and a shape for each camera. Identity 0 has only one image."""
    draw = torch.Generator().manual_seed(0)
    colors = torch.randint(0, 200, (ids, 3, 1, 1), generator=draw, dtype=torch.uint8)
    labels = torch.arange(ids).repeat_interleave(cameras)[cameras - 1 :]
    views = torch.arange(cameras).repeat(ids)[cameras - 1 :]
    images = torch.full((len(labels), 3, size, size), 255, dtype=torch.uint8)
    for picture, label, view in zip(images, labels, views, strict=True):
        picture[:, 2 : 8 + 2 * view, 2 : 14 - 2 * view] = colors[label]
    return ImageSet(
        images,
        labels,
        views,
        [f"<color {i}>" for i in range(ids)],
        [f"view {i}" for i in range(cameras)],
        "Drawn here",
    )


@pytest.fixture(scope="module")
def images():
    return shapes()


@pytest.fixture(scope="module")
def embeddings(images):
    noise = torch.randn(len(images), 8, generator=torch.Generator().manual_seed(1))
    return torch.eye(12)[images.labels][:, :8] + 0.3 * noise


@pytest.fixture(scope="module")
def evaluations(images, embeddings):
    options = {"ranked": 5, "pictured_queries": pick_queries(images, count=4, seed=3), "progress": False}
    return [
        evaluate("L2 & more", embeddings, negative_euclidean, images, **options),
        evaluate("cosine", embeddings, cosine, images, **options),
    ]


def test_metrics_are_those_of_the_market_rule(images, embeddings, evaluations):
    found = retrieval_metrics(
        embeddings,
        embeddings,
        negative_euclidean,
        images.labels,
        images.labels,
        query_cameras=images.cameras,
        reference_cameras=images.cameras,
        exclude_index=torch.arange(len(images)),
    )
    assert found.pop("cmc") == evaluations[0].cmc
    assert evaluations[0].cmc[9] == found["recall@10"] not in (0, 1), "both have the digits of float64"
    assert found == evaluations[0].metrics
    assert found["skipped"] == 1, "the identity with one image"


def test_single_camera_excludes_only_the_query(images, embeddings):
    alone = replace(images, cameras=torch.zeros_like(images.cameras))
    assert evaluate("x", embeddings, cosine, alone, progress=False).metrics["queries"] == len(images) - 1
    assert len(pick_queries(alone, count=99)) == 11


def test_queries_are_ranked_against_the_gallery_only(images, embeddings):
    """As in Market-1501: queries and gallery are disjoint, and ranked lists have row numbers of the whole set."""
    is_query = images.cameras == 2
    found = evaluate("x", embeddings, cosine, replace(images, queries=is_query), ranked=6, progress=False)
    expected = retrieval_metrics(
        embeddings[is_query], embeddings[~is_query], cosine, images.labels[is_query], images.labels[~is_query],
        query_cameras=images.cameras[is_query], reference_cameras=images.cameras[~is_query],
    )  # fmt: skip
    expected.pop("cmc")
    assert found.metrics == expected and found.metrics["skipped"] == 1
    assert len(found.ranked) == 8
    for one in found.ranked:
        assert is_query[one.query] and not is_query[one.gallery].any()
        assert one.hits == (images.labels[one.gallery] == images.labels[one.query]).tolist()
        assert one.scores == pytest.approx(cosine(embeddings[[one.query]], embeddings[one.gallery])[0].tolist())


def test_pairs_are_counted_and_precision_is_exact(images, embeddings, evaluations):
    """Compared with all thresholds by brute force."""
    scores = negative_euclidean(embeddings, embeddings)
    same = images.labels[:, None] == images.labels
    candidate = ~(same & (images.cameras[:, None] == images.cameras))
    positive, negative = scores[same & candidate], scores[~same]
    found = evaluations[0]
    assert sum(found.same) == len(positive) == 11 * 3 * 2
    assert sum(found.different) == len(negative)
    shifted = evaluate("x", embeddings, lambda q, r: negative_euclidean(q, r) + 1.0, images, progress=False)
    assert shifted.same_above_0 == ((positive + 1.0) >= 0).double().mean().item()
    assert shifted.different_above_0 == pytest.approx(((negative + 1.0) >= 0).double().mean().item(), abs=1e-12)
    assert 0 < shifted.different_above_0 < shifted.same_above_0 < 1
    assert (found.same_above_0, found.different_above_0) == (0, 0), "all scores are below 0"
    for g, precision in list(zip(RECALL_GRID.tolist(), found.precision, strict=True))[::20]:
        exact = max(
            (positive >= t).sum().item() / ((positive >= t).sum() + (negative >= t).sum()).item()
            for t in positive
            if (positive >= t).double().mean() >= g - 1e-9
        )
        assert precision == pytest.approx(exact, abs=0.02)


def test_pairs_are_counted_whatever_the_first_queries_score():
    """The first 160 of 320 queries score below 0 only; the best scores are among the others."""
    draw, labels = torch.Generator().manual_seed(0), torch.arange(320) // 4
    same = (labels[:, None] == labels) & ~torch.eye(320, dtype=torch.bool)
    table = 0.1 * torch.randn(320, 320, generator=draw) - 1.5
    table[160:, 160:] = torch.randn(160, 160, generator=draw) + 2.0 * same[160:, 160:]
    pixels = torch.zeros(320, 3, 1, 1, dtype=torch.uint8)
    images = ImageSet(pixels, labels, torch.zeros_like(labels), [str(i) for i in range(80)], ["one"], "")
    rows = torch.arange(320)[:, None]
    found = evaluate("x", rows, lambda q, r: table[q[:, 0]][:, r[:, 0]], images, pictured_queries=[], progress=False)
    positive, negative = table[same], table[labels[:, None] != labels]
    assert found.same_above_0 == (positive >= 0).double().mean().item() > 0.4
    assert found.different_above_0 == (negative >= 0).double().mean().item()
    assert (sum(found.same), sum(found.different)) == (len(positive), len(negative))
    order = torch.cat([positive, negative]).sort(descending=True).indices
    hits = (order < len(positive)).double().cumsum(0)
    precision = (hits / torch.arange(1, len(hits) + 1)).flip(0).cummax(0).values.flip(0)
    exact = precision[torch.searchsorted(hits / len(positive), RECALL_GRID)]
    torch.testing.assert_close(torch.tensor(found.precision, dtype=torch.float64), exact, atol=0.02, rtol=0)


def test_l2_distance_keeps_small_distances_of_long_rows():
    """By a matrix product, which torch.cdist takes from 26 rows on, they would be rounded to some 0.1."""
    rows = torch.full((30, 8), 1000.0)
    rows[:, 0] += torch.arange(30) / 64
    expected = -(rows[:, None, 0] - rows[None, :, 0]).abs()
    torch.testing.assert_close(negative_euclidean(rows, rows), expected, rtol=1e-6, atol=0)


def test_ranked_lists(images, embeddings, evaluations):
    scores = negative_euclidean(embeddings, embeddings)
    for one in evaluations[0].ranked:
        assert one.scores == sorted(one.scores, reverse=True) and len(one.gallery) == 5
        assert one.query not in one.gallery
        assert one.hits == (images.labels[one.gallery] == images.labels[one.query]).tolist()
        assert one.scores == pytest.approx(scores[one.query, one.gallery].tolist(), abs=1e-5)
        same = images.labels == images.labels[one.query]
        excluded = same & (images.cameras == images.cameras[one.query])
        assert one.scores[0] == pytest.approx(scores[one.query][~excluded].max().item(), abs=1e-5)


def test_pictured_queries_depend_on_the_seed_alone(images):
    chosen = pick_queries(images, count=6, seed=1)
    assert chosen == pick_queries(images, count=6, seed=1) != pick_queries(images, count=6, seed=2)
    labels = images.labels[chosen].tolist()
    assert len(set(labels)) == 6 and 0 not in labels, "different identities, each with a match"
    assert len(pick_queries(images, count=99)) == 11


def test_nan_score_raises(images, embeddings):
    def scorer(query, reference):
        return cosine(query, reference) * torch.tensor(torch.nan)

    with pytest.raises(ValueError, match="NaN score"):
        evaluate("nan", embeddings, scorer, images, progress=False)


def test_report_is_complete_and_self_contained(images, evaluations, tmp_path):
    page = write_report(
        tmp_path / "out",
        evaluations,
        images,
        title="A <title>",
        facts={"seed": 7, "machine": "two cores", "made": {"by": "<us>", "in": 2}},
    )
    text = page.read_text()
    assert {p.name for p in page.parent.iterdir()} == FILES
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", text), "the page loads something"
    assert "A &lt;title&gt;" in text and "<color" not in text and "L2 &amp; more" in text
    for fact in ("seed", "two cores", "Drawn here", "by &lt;us&gt;, in 2", "by seed", "trapezoid"):
        assert fact in text
    shown = [one for evaluation in evaluations for one in evaluation.ranked]
    assert text.count('class="shot hit"') == sum(sum(one.hits) for one in shown) > 0
    assert text.count('class="shot miss"') == sum(len(one.hits) - sum(one.hits) for one in shown) > 0
    assert text.count('class="best"') >= 8
    with Image.open(page.parent / "report.png") as picture:
        assert picture.size[0] == 1100 and len(picture.convert("RGB").getcolors(10**6)) > 100

    record = json.loads((page.parent / "metrics.json").read_text())
    assert record["facts"]["seed"] == 7 and record["facts"]["made"] == {"by": "<us>", "in": 2}
    assert [e["metrics"] for e in record["evaluations"]] == [e.metrics for e in evaluations]


def test_the_best_of_every_column_is_marked(images, evaluations, tmp_path):
    worse = replace(evaluations[0], name="worse", metrics={k: v / 2 for k, v in evaluations[0].metrics.items()})
    text = write_report(tmp_path, [worse, evaluations[0]], images, title="t", facts={}).read_text()
    row = re.search(r"<tr><td>worse</td>.*?</tr>", text, re.S).group()
    assert "best" not in row
    assert text.count('<td class="best">') == 8


def test_duplicate_metrics_are_omitted(images, embeddings):
    """With one match for each query, mINP equals mAP, and MAP@R and R-precision equal Recall@1."""
    pairs = (images.cameras < 2) & (images.labels > 0)
    found = evaluate("x", embeddings[pairs], cosine, images.take(pairs), progress=False)
    columns, table = metric_table([found])
    assert columns == ["mAP", "Recall@1", "Recall@5", "Recall@10", "mAP trapez."]
    text, _ = table[0][1][0]
    assert text == f"{100 * found.metrics['mINP']:.1f}"


def test_a_note_is_on_the_page_in_the_table_and_in_the_record(images, evaluations, tmp_path):
    note = "All 12 identities; the model was trained on 9 of them."
    page = write_report(tmp_path, evaluations, images, title="t", facts={}, note=note, trained_identities=9)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert (record["note"], record["trained_identities"]) == (note, 9)
    assert note in page.read_text() and metric_text(evaluations, note).startswith(f"{note}\n")


def test_metrics_are_valid_json_with_infinite_scores(images, embeddings, tmp_path):
    def scorer(query, reference):
        return cosine(query, reference).where(reference[:, 0] > 0.5, -torch.inf)

    found = evaluate("x", embeddings, scorer, images, pictured_queries=[1], ranked=len(images), progress=False)
    write_report(tmp_path, [found], images, title="t", facts={})
    record = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert record["evaluations"][0]["ranked"][0]["scores"][-1] is None


def test_ranks_are_written_with_all_digits(images, evaluations):
    per_query = evaluations[0].per_query
    large = replace(evaluations[0], per_query=replace(per_query, first_rank=per_query.first_rank + 1_234_567))
    ranks = {row["first_rank"] for row in csv.DictReader(per_query_csv([large], images).splitlines())}
    assert "1234568" in ranks


def test_every_query_is_in_the_table(images, evaluations, tmp_path):
    write_report(tmp_path, evaluations, images, title="t", facts={})
    with open(tmp_path / "per_query.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["L2 & more"] * 34 + ["cosine"] * 34
    assert [row["query"] for row in rows[:34]] == images.ids
    alone, *others = rows[:34]
    assert (alone["identity"], alone["matches"], alone["average_precision"]) == ("<color 0>", "0", "")
    mean = sum(float(row["average_precision"]) for row in others) / 33
    assert mean == pytest.approx(evaluations[0].metrics["mAP"], abs=1e-6)


def test_report_is_deterministic(images, evaluations, tmp_path):
    for name in ("one", "two"):
        write_report(tmp_path / name, evaluations, images, title="t", facts={})
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_pictured_queries_may_be_a_tensor(images, embeddings):
    chosen = torch.tensor(pick_queries(images, count=2))
    found = evaluate("x", embeddings, cosine, images, pictured_queries=chosen, progress=False)
    assert [one.query for one in found.ranked] == chosen.tolist()


def test_map_alone_is_that_of_the_evaluation(images, embeddings, evaluations):
    assert mean_average_precision(embeddings, cosine, images) == evaluations[1].metrics["mAP_mean"]


def test_names_with_dollar_signs_are_no_mathematics(images, embeddings, tmp_path):
    named = replace(images, label_names=[f"costs $5_$ {i}" for i in range(12)], camera_names=["$\\foo$"] * 3)
    found = evaluate("$a_$", embeddings, cosine, named, progress=False)
    write_report(tmp_path, [found], images=named, title="$x_$", facts={"root": "$y_$"})
    assert {path.name for path in tmp_path.iterdir()} >= FILES


def test_errors(images, embeddings, tmp_path):
    with pytest.raises(ValueError, match="evaluations: expected at least one"):
        write_report(tmp_path, [], images, title="t", facts={})
    with pytest.raises(ValueError, match="embeddings: expected one row for each of 34 images, got 3"):
        evaluate("x", embeddings[:3], cosine, images)
    queries = replace(images, queries=images.cameras == 2)
    message = "pictured_queries: expected image rows of queries, got 1, which is none"
    with pytest.raises(ValueError, match=message):
        evaluate("x", embeddings, lambda query, reference: pytest.fail("scored"), queries, pictured_queries=[1])
