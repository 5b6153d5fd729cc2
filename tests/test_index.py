"""The index: search equals scoring everything, and its file is safe to write and to read."""

import pickle

import pytest
import torch
from dissim_retrieval.atomic import atomic_write
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.index import DissimilarityIndex


@pytest.fixture
def head():
    head = DissimilarityHead(6, normalize=True, scale=3.0, sign="free")
    with torch.no_grad():
        head.weight.copy_(torch.tensor([-1.0, -0.2, 0.4, -0.7, 0.0, -0.3]))
        head.bias.fill_(0.25)
    return head


@pytest.fixture
def gallery():
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def query():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(2))


def filled(head, gallery, parts=3):
    index = DissimilarityIndex(head)
    for rows in torch.arange(len(gallery)).chunk(parts):
        index.add(gallery[rows], rows + 100)
    return index


@pytest.mark.parametrize("k", [1, 5, 50])
def test_search_gives_the_best_of_the_training_scores(head, gallery, query, k):
    index = filled(head, gallery)
    assert len(index) == 50
    scores, ids = index.search(query, k)
    expected = head(query, gallery).topk(k)
    torch.testing.assert_close(scores, expected.values)
    assert torch.equal(ids, expected.indices + 100)
    assert not scores.requires_grad


def test_ids_may_repeat_and_ties_keep_insertion_order(head):
    index = DissimilarityIndex(head)
    index.add(torch.ones(3, 6), torch.tensor([9, 4, 9]))
    assert index.search(torch.ones(1, 6), 3).ids.tolist() == [[9, 4, 9]]


def test_quantized_index_is_bit_identical_after_adding_rows_and_changing_weights(head, gallery, query, tmp_path):
    plain, quantized = filled(head, gallery), DissimilarityIndex(head, quantized=True)
    quantized.add(gallery, torch.arange(50) + 100)

    def bit_identical():
        pairs = zip(plain.search(query, 9), quantized.search(query, 9), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert bit_identical() and bit_identical()
    for index in (plain, quantized):
        index.add(query + 0.01, torch.arange(7))
    assert bit_identical()
    with torch.no_grad():
        head.weight.neg_()
    assert bit_identical()
    plain.save(tmp_path / "index")
    quantized = DissimilarityIndex.load(tmp_path / "index", quantized=True)
    assert bit_identical()


def test_added_rows_are_copies(gallery):
    head = DissimilarityHead(6, normalize=False)
    ids = torch.arange(50)
    index = DissimilarityIndex(head)
    index.add(gallery, ids)
    query, before = gallery[:2].clone(), index.search(gallery[:2].clone(), 1)
    gallery.zero_()
    ids.zero_()
    assert torch.equal(index.search(query, 1).ids, before.ids)


def test_half_embeddings_are_stored_in_the_dtype_of_the_head(head, gallery, query):
    index = filled(head, gallery.half())
    torch.testing.assert_close(
        index.search(query.half(), 4).scores, head(query, gallery).topk(4).values, rtol=0, atol=2e-2
    )


def test_save_and_load(head, gallery, query, tmp_path):
    path = tmp_path / "new folder" / "gallery.index"
    before = filled(head, gallery).search(query, 5)
    filled(head, gallery).save(path)
    loaded = DissimilarityIndex.load(path)
    after = loaded.search(query, 5)
    assert torch.equal(after.ids, before.ids) and torch.equal(after.scores, before.scores)
    assert [p.name for p in path.parent.iterdir()] == ["gallery.index"]

    loaded.add(query, torch.arange(7))  # rows can be added to a loaded index, and it can replace its own file
    loaded.save(path)
    assert len(DissimilarityIndex.load(path)) == 57


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


class Harmful:
    def __reduce__(self):
        return (print, ("code from the file has run",))


@pytest.mark.parametrize("content", ["text", "pickle", "torch", "code"])
def test_loading_other_files_raises_and_runs_no_code(content, tmp_path, capsys):
    path = tmp_path / "file"
    if content == "text":
        path.write_text("not an index")
    elif content == "pickle":
        path.write_bytes(pickle.dumps({"format": "dissim-index 1"}))
    else:
        torch.save({"format": "other", "x": Harmful() if content == "code" else 1}, path)
    with pytest.raises(ValueError, match=r"expected a file written by DissimilarityIndex\.save"):
        DissimilarityIndex.load(path)
    assert capsys.readouterr().out == ""


def test_errors_say_what_to_do(head, gallery, query):
    index = filled(head, gallery)
    with pytest.raises(ValueError, match="k: expected 1 to 50, the rows of the index, got 51"):
        index.search(query, 51)
    with pytest.raises(ValueError, match="k: expected 1 to 0"):
        DissimilarityIndex(head).search(query, 1)
    with pytest.raises(ValueError, match=r"query: expected embeddings \[rows, 6\] .* got \[7, 5\]"):
        index.search(query[:, :5], 1)
    with pytest.raises(ValueError, match=r"ids: expected int64 \[7\]"):
        index.add(query, torch.arange(7).float())
    with pytest.raises(ValueError, match="embeddings: expected finite numbers"):
        index.add(query / 0, torch.arange(7))
    with pytest.raises(FileNotFoundError):
        DissimilarityIndex.load("no such file")
