"""The export to FAISS: the same ranking for weights of one sign, with a recall that is measured."""

import builtins
import json

import numpy as np
import pytest
import torch
from dissim_retrieval import (
    BackboneWeights,
    DissimilarityHead,
    DissimilarityIndex,
    ProjectedHead,
    cli,
    export_faiss,
)
from dissim_retrieval.fitted_gallery import fitted_gallery

faiss = pytest.importorskip("faiss")


@pytest.fixture
def head():
    head = DissimilarityHead(8, sign="negative", scale=2.0)
    with torch.no_grad():
        head.weight.copy_(-torch.rand(8, generator=torch.Generator().manual_seed(0)))
        head.weight[3] = 0
        head.bias.fill_(0.5)
    return head


def filled(index, ids=None):
    """Rows of which the order of ids, of segments and of numbers all differ."""
    rows = torch.randn(600, 8, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(1000, 400, -1).tolist() if ids is None else ids
    for first in range(0, 600, 200):
        index.add(rows[first : first + 200], ids[first : first + 200])
    index.update(rows[:2] + 0.5, ids[4:6])
    index.remove(ids[10:20])
    return index


@pytest.fixture
def query():
    return torch.randn(30, 8, generator=torch.Generator().manual_seed(2))


def search_of_the_file(path, query, head, k):
    """As a user of the file alone would search it."""
    record = json.loads(path.with_name(path.name + ".json").read_text())
    rows = torch.nn.functional.normalize(query, dim=1).numpy() * record["scale"] * np.array(record["abs_weight"])
    distances, ids = faiss.read_index(str(path)).search(rows.astype(np.float32), k)
    return record["bias"] - distances, ids, record["names"]


@pytest.mark.parametrize("kind", ["Flat", "HNSW", "IVF"])
def test_the_file_gives_the_scores_and_ids_of_the_index(tmp_path, head, query, kind):
    index = filled(DissimilarityIndex(head))
    options = {"HNSW": {"ef_search": 600}, "IVF": {"nlist": 5, "nprobe": 5}, "Flat": {}}[kind]
    made = export_faiss(index, tmp_path / "out.faiss", kind=kind, queries=query, **options)
    expected = index.search(query, 7)
    scores, ids, names = search_of_the_file(tmp_path / "out.faiss", query, head, 7)
    assert made.rows == 590 and made.recall >= (0.98 if kind == "HNSW" else 1.0) and names is None
    agreement = (ids == expected.ids.numpy()).mean()
    assert agreement >= (0.98 if kind == "HNSW" else 1.0)
    if kind != "HNSW":
        np.testing.assert_allclose(scores, expected.scores, rtol=1e-5, atol=1e-5)


def test_recall_counts_what_is_missing(tmp_path, head, query):
    index = filled(DissimilarityIndex(head))
    made = export_faiss(index, tmp_path / "out.faiss", kind="IVF", nlist=60, nprobe=1, queries=query)
    _, ids, _ = search_of_the_file(tmp_path / "out.faiss", query, head, 10)
    expected = index.search(query, 10).ids.numpy()
    found = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(ids, expected, strict=True)])
    assert made.recall == pytest.approx(found) and 0.1 < found < 0.9
    drawn = export_faiss(index, tmp_path / "out.faiss", kind="IVF", nlist=60, nprobe=1).recall
    assert 0.1 < drawn < 0.9
    assert export_faiss(index, tmp_path / "out.faiss", kind="Flat").recall == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_str_ids_become_numbers_in_the_order_of_insertion(tmp_path, head, query, dtype):
    names = [f"photo {n}" for n in range(600)]
    index = filled(DissimilarityIndex(head.to(dtype)), names)
    assert export_faiss(index, tmp_path / "out.faiss", kind="Flat", queries=query).recall == 1
    _, numbers, kept = search_of_the_file(tmp_path / "out.faiss", query, head, 1)
    assert kept == names[:10] + names[20:]
    assert np.mean(np.array(kept, object)[numbers] == index.search(query, 1).ids) > 0.9  # queries are not rounded


def test_a_gallery_of_dissim_fit_is_exported_with_its_projection(tmp_path, head, query):
    projection = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
    fitted = ProjectedHead(torch.ones(12), projection, head)
    index = fitted_gallery(fitted)
    embeddings = torch.randn(600, 12, generator=torch.Generator().manual_seed(4))
    index.add(fitted.project(embeddings).detach())
    path = tmp_path / "out.faiss"
    export_faiss(index, path, kind="Flat")
    record = json.loads(path.with_name("out.faiss.json").read_text())
    new = torch.randn(30, 12, generator=torch.Generator().manual_seed(5))
    projected = (new - torch.tensor(record["mean"])) @ torch.tensor(record["projection"])
    scores, ids, _ = search_of_the_file(path, projected, head, 7)
    expected = fitted(new, embeddings).topk(7)
    assert np.array_equal(ids, expected.indices)
    np.testing.assert_allclose(scores, expected.values.detach(), rtol=1e-4, atol=1e-4)
    export_faiss(filled(DissimilarityIndex(head)), path, kind="Flat")
    record = json.loads(path.with_name("out.faiss.json").read_text())
    assert record["mean"] is None and record["projection"] is None


def test_a_backbone_of_this_name_is_no_projection(tmp_path, head):
    own = BackboneWeights("projection", {"layer": torch.ones(1)})
    export_faiss(filled(DissimilarityIndex(head, backbone=own)), tmp_path / "out.faiss", kind="Flat")
    assert json.loads((tmp_path / "out.faiss.json").read_text())["projection"] is None
    wrong = filled(DissimilarityIndex(head, backbone=own, provenance={"fit": "1"}))
    with pytest.raises(ValueError, match=r"gallery: expected mean \[D\] and projection \[D, 8\]"):
        export_faiss(wrong, tmp_path / "wrong.faiss", kind="Flat")


@pytest.mark.parametrize("name", ["out.faiss", "out.faiss.json"])
def test_files_are_checked_before_the_rows_are_added(tmp_path, head, monkeypatch, name):
    index = filled(DissimilarityIndex(head))
    (tmp_path / name).mkdir()
    monkeypatch.setattr(faiss, "IndexFlat", lambda *_: pytest.fail("it was built"))
    with pytest.raises(IsADirectoryError, match=f"{name}, which is a folder"):
        export_faiss(index, tmp_path / "out.faiss", kind="Flat")


def test_an_export_that_fails_leaves_no_file(tmp_path, head, monkeypatch):
    monkeypatch.setattr("dissim_retrieval.index.faiss_export.json.dumps", lambda _: pytest.fail("the disk is full"))
    with pytest.raises(pytest.fail.Exception, match="the disk is full"):
        export_faiss(filled(DissimilarityIndex(head)), tmp_path / "out.faiss", kind="Flat")
    assert not any(tmp_path.iterdir())


def test_an_index_on_disk_is_exported_by_the_command_line(tmp_path, head, capsys):
    filled(DissimilarityIndex.create(tmp_path / "gallery", head))
    arguments = ["export", str(tmp_path / "gallery"), str(tmp_path / "out.faiss"), "--kind", "Flat"]
    assert cli.main(arguments) == 0
    assert "590 rows" in (text := capsys.readouterr().out) and "recall@10 1.000" in text
    assert cli.main(arguments) == 1 and "--overwrite replaces it" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_errors_say_what_to_do(tmp_path, head, query, monkeypatch):
    index, path = DissimilarityIndex(head), tmp_path / "out.faiss"
    with pytest.raises(ValueError, match="index: expected rows to export, got an index without rows"):
        export_faiss(index, path)
    filled(index)
    for options, message in (
        ({"kind": "PQ"}, "kind: expected one of Flat, HNSW, IVF, got 'PQ'"),
        ({"m": 1}, "m: expected an integer of at least 2, got 1"),
        ({"nprobe": 1.5}, "nprobe: expected an integer of at least 1, got 1.5"),
        ({"queries": query[:, :5]}, r"query: expected \[rows, 8\]"),
    ):
        with pytest.raises(ValueError, match=message):
            export_faiss(index, path, **options)
    with torch.no_grad():
        head.weight[2] = 0.1
    with pytest.raises(ValueError, match="index: expected weights of at most 0, got 1 positive ones"):
        export_faiss(index, path)
    load = builtins.__import__

    def without_faiss(name, *arguments, **options):
        if name == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'")
        return load(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ModuleNotFoundError, match=r"faiss: expected FAISS.*pip install -e '\.\[faiss\]'"):
        export_faiss(index, path)
    assert list(tmp_path.iterdir()) == []
