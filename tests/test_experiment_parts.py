"""The parts of the accuracy experiments: training, validation, test, queries and gallery, and what is measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval.data import ImageSet, load_images
from dissim_retrieval.demo import DemoConfig
from dissim_retrieval.evaluation import cosine, retrieval_metrics
from PIL import Image
from safetensors.torch import load_file
from synthetic_features import AMOUNTS, GROUP, synthetic, synthetic_parts

from bench.experiments import __main__ as program
from bench.experiments import frozen, records, runner
from bench.experiments.data import Features, Part, Parts, halves, load_parts
from bench.experiments.plan import Amounts, group_on_disk
from bench.experiments.trial import Fitted, measure_part

OURS = "projection, w"
RESULTS = Path(program.RESULTS)


def test_parts_share_no_identity_and_no_split_sees_a_test_identity():
    parts = synthetic_parts()
    tuned = records.Records(runner.make_plan(replace(GROUP, methods="factors"), {}, AMOUNTS, ""), [])
    test = set(parts.test(tuned).content.labels.tolist())
    assert len(test) == 20
    trained = []
    for split in range(3):
        sets = [set(x.labels.tolist()) for x in (parts.train(split), parts.validation(split).content)]
        assert len(sets[0]) == 16 and len(sets[1]) == 4 and not sets[0] & sets[1] and not test & (sets[0] | sets[1])
        trained.append(sets[0])
    assert trained[0] != trained[1] != trained[2]


def test_the_test_half_of_experiments_and_demo_is_that_of_the_committed_results():
    """The emoji have two images of each of 1,870 identities."""
    labels = torch.arange(1870).repeat(2)
    images = ImageSet(torch.zeros(3740, 3, 1, 1, dtype=torch.uint8), labels, labels * 0, ["x"] * 1870, ["c"], "")
    _, unseen = images.split_labels(seed=DemoConfig().seed)
    drawn = unseen.labels.unique()
    content = Features(torch.zeros(3740, 1), labels, labels * 0, ["c"])
    assert torch.equal(halves(content)[1].labels.unique(), drawn)
    assert committed_parts("emoji", 64) == [drawn.tolist()]


@pytest.mark.parametrize("size", [32, 64])
def test_the_queries_of_the_glyphs_are_those_of_the_committed_results(size):
    """Not every identity of the test half is among the 2,000 queries that are drawn."""
    images = load_images("glyphs", size=size)
    content = Features(torch.zeros(len(images), 1), images.labels, images.cameras, images.camera_names)
    parts = Parts(*halves(content), GROUP.protocol, Amounts())
    part = parts._part("test", parts._test)
    drawn = part.content.labels[part.queries].unique().tolist()
    assert committed_parts("glyphs", size) == [drawn]


def committed_parts(data, size):
    """The different lists of unseen test identities of a set in the committed results."""
    found = [records.read(path) for path in RESULTS.glob(f"*/{data}-*.jsonl")]
    wanted = {"size": size, "protocol": GROUP.protocol}
    parts = [part for one in found if wanted.items() <= one.plan.items() for part in one.of("part")]
    return [list(one) for one in {tuple(part["identities"]) for part in parts if part["name"] == "test"}]


@pytest.mark.parametrize(
    "names",
    [
        ("DejaVuSans", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "STIXGeneralBol"),
        ("Noto", "Noto 1", "OpenMoji", "Fluent"),
    ],
)
def test_unseen_camera_is_in_no_training_image_and_only_in_queries(names):
    parts = synthetic_parts("unseen camera", cameras=4, names=names)
    assert parts.train(0).cameras.unique().tolist() == [0, 1]
    for part, queried in ((parts.validation(0), 2), (parts._part("test", parts._test), 3)):
        assert part.content.cameras[part.queries].unique().tolist() == [queried]
        assert part.content.cameras[part.gallery].unique().tolist() == [0, 1]


@pytest.mark.parametrize("other_cameras", [False, True])
def test_values_of_identities_are_the_metrics(other_cameras):
    """Every identity has the same number of queries here, so the mean over identities is that over queries."""
    content, rows = synthetic(), torch.arange(80)
    values = measure_part(Fitted(lambda features: features.rows, cosine), Part("p", content, rows, rows))[
        other_cameras
    ]
    sides = [rows % 2 == 0, rows % 2 == 1] if other_cameras else [rows >= 0]
    means = []
    for side in sides:
        gallery = ~side if other_cameras else side
        found = retrieval_metrics(
            content.rows[side], content.rows[gallery], cosine, content.labels[side], content.labels[gallery],
            query_cameras=content.cameras[side], reference_cameras=content.cameras[gallery],
        )  # fmt: skip
        means.append((found["mAP"], found["recall@1"]))
    assert values.identities.tolist() == list(range(40))
    expected = np.mean(means, axis=0)
    np.testing.assert_allclose([values.precision.mean(), values.recall_at_1.mean()], expected, rtol=1e-12)


def test_every_identity_counts_as_the_mean_of_its_queries():
    """Identity 0 has two queries, identity 1 one."""
    content, gallery = synthetic(), torch.arange(80)
    fitted = Fitted(lambda features: features.rows, cosine)

    def precision(queries):
        return measure_part(fitted, Part("p", content, torch.tensor(queries), gallery)).standard.precision.tolist()

    single = [precision([query])[0] for query in range(3)]
    assert len(set(single)) == 3
    assert precision([0, 1, 2]) == pytest.approx([(single[0] + single[1]) / 2, single[2]])


@pytest.fixture
def birds(tmp_path):
    """Three pictures of each of 10 training and 5 test classes, in the layout of CUB-200-2011."""
    draw = np.random.default_rng(0)
    for number in (*range(1, 11), *range(101, 106)):
        folder = tmp_path / "birds" / "images" / f"{number:03d}.Bird"
        folder.mkdir(parents=True)
        for name in "abc":
            Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return tmp_path / "birds"


def test_a_set_on_disk_is_tested_on_its_official_test_part(birds, tmp_path, monkeypatch):
    """It has one camera, so only the query itself is no result."""
    chosen = {name: frozen.METHODS[name] for name in ("cosine", "projection, L1", OURS)}
    monkeypatch.setitem(program.METHODS, "frozen", chosen)
    monkeypatch.setattr(program, "CACHE", tmp_path / "cache")
    options = ("--root", str(birds), "--backbone", "small", "--quick", "--output", str(tmp_path / "out"))
    assert program.main(["frozen", "--set", "cub200", *options]) == 0
    found = records.read(tmp_path / "out" / "frozen" / "cub200-small.jsonl")
    [part] = found.of("part")
    assert part["identities"] == list(range(5)) and part["queries"] == 15
    assert {name: len(found.runs(name)) for name in chosen} == dict.fromkeys(chosen, 1)

    parts, _ = load_parts(group_on_disk("frozen", "cub200", "small"), Amounts(), tmp_path / "cache", birds)
    values = measure_part(Fitted(lambda features: features.rows, cosine), parts._part("test", parts._test)).standard
    fingerprint = load_images("cub200-test", size=224, root=birds).fingerprint
    rows = load_file(tmp_path / "cache" / "features" / f"small-{fingerprint}.safetensors")["rows"]
    labels = torch.arange(5).repeat_interleave(3)
    expected = retrieval_metrics(rows, rows, cosine, labels, labels, exclude_index=torch.arange(15))
    assert values.precision.mean() == pytest.approx(expected["mAP"], rel=1e-12)


def test_queries_of_an_official_set_are_no_gallery():
    content = replace(synthetic(), queries=torch.arange(80) % 2 == 0)
    part = Parts(content, content, GROUP.protocol, AMOUNTS)._part("test", content)
    assert len(part.queries) == 40 and part.queries.remainder(2).sum() == 0
    assert part.gallery.tolist() == list(range(1, 80, 2))
    assert content.take(content.labels < 3).queries.tolist() == [True, False] * 3


@pytest.mark.parametrize("options", [["--set", "cub200"], ["--root", "x"], ["--set", "glyphs", "--root", "x"]])
def test_root_is_for_sets_on_disk_only(options, capsys):
    with pytest.raises(SystemExit):
        program.main(["frozen", *options])
    assert "expected --root with the sets market1501," in capsys.readouterr().err
