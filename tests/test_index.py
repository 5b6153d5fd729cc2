"""The index: search equals scoring everything, in memory, on disk and streamed."""

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from index_model import Model, apply_write, check_search

KINDS = ("memory", "quantized", "disk", "streamed")


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


@pytest.fixture
def make(tmp_path):
    """A function that makes an empty index of a kind."""

    def make_index(kind, head):
        if kind in ("memory", "quantized"):
            return DissimilarityIndex(head, quantized=kind == "quantized")
        DissimilarityIndex.create(tmp_path / kind, head)
        return DissimilarityIndex.open(tmp_path / kind, in_memory=kind == "disk")

    return make_index


def filled(index, gallery, parts=3):
    for rows in torch.arange(len(gallery)).chunk(parts):
        index.add(gallery[rows], rows + 100, {"label": [f"a{n % 4}" for n in rows.tolist()], "number": rows})
    return index


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5, 50])
def test_search_gives_the_best_of_the_training_scores(make, kind, head, gallery, query, k):
    index = filled(make(kind, head), gallery)
    assert len(index) == 50
    scores, ids = index.search(query, k)
    expected = head(query, gallery).topk(k)
    torch.testing.assert_close(scores, expected.values)
    assert torch.equal(ids, expected.indices + 100)
    assert not scores.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_writes_and_searches_equal_a_full_sort(make, kind):
    torch.manual_seed(0)
    head = DissimilarityHead(5, sign="free", normalize=False)
    torch.nn.init.normal_(head.weight)
    index, model, rng = make(kind, head), Model(5), np.random.default_rng(KINDS.index(kind))
    for _ in range(60):
        write = model.draw(rng)
        apply_write(index, write)
        model.apply(write)
        assert model.matches(index)
        query = torch.from_numpy(np.stack([write.rows[0], rng.standard_normal(5).astype(np.float32)]))
        check_search(
            index, model, query, k=int(rng.integers(1, 12)), color=rng.choice([None, "red", "no such color"])
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(make, kind, dtype, head, gallery, query):
    head = head.to(dtype)
    index = filled(make(kind, head), gallery)
    found = index.search(query, 4)
    assert found.scores.dtype == torch.promote_types(dtype, torch.float32)
    assert index.get([100]).embeddings.dtype == dtype
    nothing = index.get(np.empty(0, np.int64))
    assert nothing.embeddings.dtype == index.get(np.array([100])).embeddings.dtype and nothing.ids.dtype == np.int64
    exact = DissimilarityHead(6, normalize=False).double()
    exact.load_state_dict(head.state_dict())
    with torch.no_grad():
        stored = index.get(torch.arange(100, 150)).embeddings.double()
        best = exact(
            head.transform(query.to(torch.promote_types(dtype, torch.float32))).to(dtype).double(), stored
        ).topk(4)
    torch.testing.assert_close(found.scores.double(), best.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ties_are_in_the_order_of_insertion_also_after_updates_and_compaction(make, kind):
    index = make(kind, DissimilarityHead(6))
    index.add(torch.ones(3, 6), [9, 4, 7])
    index.add(torch.ones(2, 6), [1, 8])
    order = [9, 4, 7, 1, 8]
    assert index.search(torch.ones(1, 6), 5).ids.tolist() == [order]
    index.update(torch.ones(2, 6), [7, 9])
    assert index.search(torch.ones(1, 6), 5).ids.tolist() == [order]
    index.optimize()
    assert index.search(torch.ones(1, 6), 3).ids.tolist() == [order[:3]]
    index.remove([4])
    index.add(torch.ones(1, 6), [4])
    assert index.search(torch.ones(1, 6), 5).ids.tolist() == [[9, 7, 1, 8, 4]]


def test_nan_is_after_every_number_in_and_between_segments(make):
    """Infinity minus infinity: rows 0 and 3 score NaN, rows 1 and 4 minus infinity."""
    head = DissimilarityHead(2, normalize=False, sign="free")
    with torch.no_grad():
        head.weight.copy_(torch.tensor([-1.0, 1.0]))
    high = 3e38
    rows = torch.tensor([[high, high], [high, 0.0], [1.0, 0.0], [high, high], [high, 0.0], [2.0, 0.0]])
    index, groups = make("memory", head), [0, 0, 0, 1, 2, 3]
    for part in range(2):
        index.add(rows[3 * part :][:3], metadata={"group": groups[3 * part :][:3]})
    query = torch.tensor([[-high, -high]])
    assert index.search(query, 6).ids.tolist() == [[2, 5, 1, 4, 0, 3]]
    index.remove([1])
    assert index.search(query, 6).ids.tolist() == [[2, 5, 4, 0, 3, -1]]
    for fuse in ("max", "mean", "min", "median"):
        assert index.search(query, 4, group_by="group", fuse=fuse).ids.tolist() == [[3, 2, 0, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_candidates_than_k_are_padded(make, kind, head, query):
    index = make(kind, head)
    scores, ids = index.search(query, 2)
    assert (scores == -torch.inf).all() and (ids == -1).all() and len(index) == 0
    index.add(query[:1], ["one"], {"label": [3]})
    scores, ids = index.search(query, 2)
    assert ids.tolist() == [["one", None]] * 7 and (scores[:, 1] == -torch.inf).all()
    assert index.search(query, 1, filter="label = 4").ids.tolist() == [[None]] * 7
    assert index.search(query, 2, group_by="label").ids.tolist() == [[3, -1]] * 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_equals_an_index_of_the_rows_that_satisfy_it(make, kind, head, gallery, query):
    index = filled(make(kind, head), gallery)
    index.remove([101, 122])
    index.add(query[:1], [7], {"number": [1]})  # its label is null
    for condition, rows in (
        ("label = 'a1' AND number < 30", [n for n in range(30) if n % 4 == 1 and n not in (1, 22)]),
        ("id IN (103, 104, 122)", [3, 4]),
        ([103, 122, 5000, 104], [3, 4]),
        (np.array([149]), [49]),
    ):
        found = index.search(query, 12, filter=condition)
        expected = head(query, gallery[rows]).topk(min(12, len(rows)))
        torch.testing.assert_close(found.scores[:, : len(rows)], expected.values)
        assert torch.equal(found.ids[:, : len(rows)], torch.tensor(rows)[expected.indices] + 100)
        assert (found.ids[:, len(rows) :] == -1).all()
    assert index.search(query, 1, filter="label IS NULL").ids.tolist() == [[7]] * 7


@pytest.fixture
def calls(monkeypatch):
    """The rows and options of every call of top-k by a search."""
    from dissim_retrieval.index import scan

    seen = []

    def search(query, rows, *args, search=scan.fused_dissim_topk, **options):
        seen.append((rows, options))
        return search(query, rows, *args, **options)

    monkeypatch.setattr(scan, "fused_dissim_topk", search)
    return seen


def test_a_filter_scores_only_what_satisfies_it(head, gallery, query, calls):
    index = DissimilarityIndex(head, quantized=True)
    filled(index, gallery, parts=1)
    for condition, rows in (("number < 3", 3), ("number < 4", 50)):
        index.search(query, 3, filter=condition)
        scored, options = calls[-1]
        assert len(scored) == rows
        if rows == 50:  # a scan of the codes, in which the other rows are no candidates
            assert options["quantized"].rows == 50 and options["reference_labels"].nonzero()[0].item() == 4
    filled(DissimilarityIndex(head), gallery, parts=1).search(query, 3, filter="number < 40")
    assert len(calls[-1][0]) == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_filter_with_codes_is_bit_identical(dtype, head, gallery, query):
    plain, quantized = (filled(DissimilarityIndex(head.to(dtype), quantized=on), gallery) for on in (False, True))
    for index in (plain, quantized):
        index.remove([103, 120])
    for condition in ("number < 2", "number < 20", "number > 20 AND label != 'a1'", [103, 104, 120, 149]):
        for k in (1, 5, 60):
            found, expected = (index.search(query, k, filter=condition) for index in (quantized, plain))
            assert torch.equal(found.scores, expected.scores) and torch.equal(found.ids, expected.ids)


@pytest.mark.parametrize("fuse", ["max", "mean", "min", "median"])
@pytest.mark.parametrize("kind", KINDS)
def test_groups(make, kind, fuse, head, gallery, query):
    index = filled(make(kind, head), gallery)
    index.remove([104, 108])
    index.add(gallery[:1], [1])  # no label: no candidate
    rows = [n for n in range(50) if n not in (4, 8)]
    scores = head(query, gallery).detach().numpy()
    reduce = {"max": np.max, "mean": np.mean, "min": np.min, "median": np.median}[fuse]
    expected = np.stack([reduce(scores[:, [n for n in rows if n % 4 == g]], axis=1) for g in range(4)], 1)
    found = index.search(query, 3, group_by="label", fuse=fuse)
    order = np.argsort(-expected, axis=1)[:, :3]
    np.testing.assert_allclose(found.scores, np.take_along_axis(expected, order, 1), rtol=1e-5)
    assert found.ids.tolist() == [[f"a{g}" for g in one] for one in order]
    found = index.search(query, 2, group_by="label", fuse=fuse, filter="number IN (0, 1, 5)")
    assert {name for one in found.ids.tolist() for name in one} == {"a0", "a1"}


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_groups_of_integers_of_every_type(make, kind, dtype, head, gallery):
    largest = int(np.iinfo(dtype).max)
    index = make(kind, head)
    index.add(gallery[:3], metadata={"group": np.array([largest, 1, 1], dtype)})
    index.add(gallery[3:4])  # null
    for query in (gallery[:1], gallery[:1].numpy()):
        ids = index.search(query, 3, group_by="group").ids
        assert ids.tolist() == [[largest, 1, None if dtype == "uint64" else -1]]
        assert str(ids.dtype).removeprefix("torch.") == ("object" if dtype == "uint64" else "int64")


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_names_of_columns_may_have_capitals_and_be_words_of_sql(make, kind, head, gallery):
    index = make(kind, head)
    index.add(gallery[:3], metadata={"Camera": ["x", "y", "y"], "order": [1, 2, 3]})
    assert index.search(gallery[:1], 2, group_by="Camera").ids.tolist() == [["x", "y"]]
    assert index.search(gallery[:1], 2, group_by="order").ids.shape == (1, 2)
    assert index.search(gallery[:1], 2, filter="`Camera` = 'x' AND `order` = 1").ids.tolist() == [[0, -1]]


@pytest.mark.parametrize("kind", KINDS)
def test_range_search_finds_what_scores_the_threshold_or_more(make, kind, head, gallery, query):
    index = filled(make(kind, head), gallery)
    index.remove([110])
    everything = index.search(query, 49)
    threshold = everything.scores[:, 10].median().item()
    found = index.range_search(query, threshold)
    for n in range(7):
        part = slice(found.offsets[n], found.offsets[n + 1])
        count = int((everything.scores[n] >= threshold).sum())
        torch.testing.assert_close(found.scores[part], everything.scores[n, :count])
        assert torch.equal(found.ids[part], everything.ids[n, :count])
    assert index.range_search(query, threshold, filter="number = 10").ids.tolist() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [1, 70])
def test_ranks_are_places_in_the_result_of_a_search(make, kind, head, gallery, queries):
    gallery[20:40] = gallery[:20]  # equal scores, in and between segments
    index = filled(make(kind, head), gallery)
    index.update(gallery[30:33], [102, 120, 140])  # moves rows to another segment
    index.remove([104, 111])
    query = torch.randn(queries, 6, generator=torch.Generator().manual_seed(3))
    best = index.search(query, 48).ids
    lists = [best[n][torch.randperm(48)[: n % 5 if n else 48]] for n in range(queries)]
    offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
    found = index.ranks(query, offsets, torch.cat(lists))
    places = [(best[n] == row).nonzero()[0, 0] for n, rows in enumerate(lists) for row in rows]
    assert torch.equal(found, torch.stack(places))
    assert index.ranks(query.numpy(), [0] * (queries + 1), []).tolist() == []


@pytest.mark.parametrize("kind", KINDS)
def test_update_remove_and_get(make, kind, head, gallery, query):
    index = filled(make(kind, head), gallery)
    index.update(query[:2], [130, 105], {"label": ["new", "newer"], "extra": [True, None]})
    stored = index.get([105, 104, 130])
    torch.testing.assert_close(stored.embeddings, head.transform(torch.stack([query[1], gallery[4], query[0]])))
    assert stored.ids.tolist() == [105, 104, 130]
    assert stored.metadata == {"label": ["newer", "a0", "new"], "number": [5, 4, 30], "extra": [None, None, True]}
    index.remove(np.array([130]))
    for call in (index.get, index.remove, lambda ids: index.update(query[:2], ids)):
        with pytest.raises(KeyError, match="ids: expected ids of the index, got 130"):
            call([101, 130])
    assert len(index) == 49 and index.get([101]).ids.tolist() == [101]
    nothing = index.get([])
    assert nothing.embeddings.shape == (0, 6) and nothing.metadata == {"label": [], "number": [], "extra": []}
    assert make("memory", head).get([]).embeddings.shape == (0, 6)
    index.remove([])
    index.update(query[:0], [])
    assert list(index.add(query[:0], [])) == [] and len(index) == 49


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_listed_in_the_order_of_insertion(make, kind, head, gallery):
    index = make(kind, head)
    assert index.columns == {} and index.ids().tolist() == []
    filled(index, gallery)
    index.update(gallery[:2], [120, 101])
    index.remove([100, 103])
    expected = [n for n in range(101, 150) if n != 103]
    assert index.columns == {"id": "int64", "label": "string", "number": "int64"}
    assert index.ids().tolist() == expected
    assert index.ids(start=10, count=12).tolist() == expected[10:22]
    assert index.ids("label = 'a0'", start=1).tolist() == list(range(108, 150, 4))
    assert index.ids([130, 120, 100]).tolist() == [120, 130]
    with pytest.raises(ValueError, match="start, count: expected numbers of at least 0, got -1 and None"):
        index.ids(start=-1)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_ids_are_numbered_if_none_are_given(make, kind, head, gallery):
    index = make(kind, head)
    assert index.add(gallery[:3]).tolist() == [0, 1, 2]
    assert index.add(gallery[:1], [10]).tolist() == [10]
    assert index.add(gallery[:2].numpy()).tolist() == [11, 12]


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_numbers_depend_on_the_rows_that_there_are(make, kind, head, gallery, tmp_path):
    """Not on rows that were removed, of which an index that was opened again does not know."""
    index = make(kind, head)
    index.add(gallery[:4])
    index.remove([1, 3])
    index.save(tmp_path / "saved")
    assert DissimilarityIndex.open(tmp_path / "saved").add(gallery[:2]).tolist() == [3, 4]
    assert index.add(gallery[:2]).tolist() == [3, 4]
    index.remove([0, 2, 3, 4])
    assert index.add(gallery[:1]).tolist() == [0]
    negative = DissimilarityIndex(head)
    negative.add(gallery[:2], [-5, -3])
    assert negative.add(gallery[:2]).tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_numbers_end_at_the_largest_int64(make, kind, head, gallery):
    index = make(kind, head)
    index.add(gallery[:1], [2**63 - 2])
    with pytest.raises(
        ValueError, match=r"ids: expected them with 9223372036854775806 in the index, got None\. Pass"
    ):
        index.add(gallery[:2])
    assert index.add(gallery[:1]).tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match="ids: expected them"):
        index.add(gallery[:1])
    assert len(index) == 2 and index.add(gallery[:0]).tolist() == []


def test_numpy_and_lists_give_what_tensors_give(head, gallery, query):
    expected = filled(DissimilarityIndex(head), gallery).search(query, 3)
    for convert in (
        torch.Tensor.numpy,
        torch.Tensor.tolist,
        lambda tensor: tensor.numpy()[::-1].copy()[::-1],
        lambda tensor: tensor.numpy().astype(tensor.numpy().dtype.newbyteorder()),
    ):
        index = DissimilarityIndex(head)
        ids = convert(torch.arange(100, 150))
        index.add(convert(gallery), ids, {"number": ids})
        assert index.search(convert(query[:1]), 50, filter="number = id").ids.min() == 100
        assert index.ranks(convert(query[:1]), convert(torch.tensor([0, 1])), ids[:1])[0] >= 0
        found = index.search(convert(query), 3)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.ids, expected.ids)
    assert isinstance(index.search(query.numpy(), 3).ids, np.ndarray)
    assert isinstance(index.search(query.tolist(), 3).ids, torch.Tensor)


def test_quantized_index_is_bit_identical_after_adding_rows_and_changing_weights(head, gallery, query, tmp_path):
    plain, quantized = (filled(DissimilarityIndex(head, quantized=on), gallery) for on in (False, True))

    def bit_identical():
        pairs = zip(plain.search(query, 9), quantized.search(query, 9), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert bit_identical() and bit_identical()
    for index in (plain, quantized):
        index.add(query + 0.01)
        index.remove([103, 120])
    assert bit_identical()
    with torch.no_grad():
        head.weight.neg_()
    assert bit_identical()
    plain.save(tmp_path / "index")
    quantized = DissimilarityIndex.open(tmp_path / "index", quantized=True)
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


@pytest.mark.parametrize("kind", ["memory", "disk", "streamed"])
def test_many_small_writes_leave_few_segments(make, kind, head):
    index = make(kind, head)
    for number in range(70):
        index.add(torch.randn(1, 6), [number])
    assert len(index._snapshot.segments) < 20
    version = index.version
    index.optimize()
    assert len(index._snapshot.segments) == 1 and index.version > version
    assert index.get(list(range(70))).ids.tolist() == list(range(70))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_provenance_must_belong_to_the_index(kind, head, gallery, tmp_path):
    ours, theirs = {"model": "a" * 64}, {"model": "b" * 64}
    if kind == "memory":
        index = DissimilarityIndex(head, provenance=ours)
    else:
        DissimilarityIndex.create(tmp_path / "index", head, provenance=ours)
        index = DissimilarityIndex.open(tmp_path / "index")
    with pytest.raises(TypeError, match=r"provenance: expected a dict that fits in JSON, .* not: Out of range float"):
        DissimilarityIndex(head, provenance={"loss": float("nan")})
    index.add(gallery, provenance=ours)
    for call in (index.add, lambda rows, **options: index.search(rows, 1, **options)):
        call(gallery)
        with pytest.raises(ValueError, match=r"provenance: expected .* of the index \(a+\), .*\(b+\)"):
            call(gallery, provenance=theirs)
    assert len(index) == 100


def test_errors_say_what_to_do(head, gallery, query):
    index = filled(DissimilarityIndex(head), gallery)
    names = DissimilarityIndex(head)
    names.add(query, list("abcdefg"))
    for call, message in (
        (lambda: index.search(query, 0), "k: expected an integer of at least 1, got 0"),
        (lambda: index.search(query[:, :5], 1), r"query: expected \[rows, 6\], as the head's weight, got \[7, 5\]"),
        (lambda: index.search(query[0], 1), r"query: .* got \[6\]. Pass query\[None\] for one row"),
        (lambda: index.search(query.int(), 1), "query: expected floats, got torch.int32"),
        (lambda: index.search(query, 1, filter="numbr < 3"), "filter: expected an SQL condition on id, label"),
        (lambda: index.search(query, 1, filter="label = '"), "filter: expected an SQL condition"),
        (lambda: index.search(query, 1, filter="id = ?"), "filter: expected an SQL condition .* Task was aborted"),
        (lambda: index.search(query, 1, filter=["x"]), r"filter: expected int64 \[n\]"),
        (lambda: index.search(query, 1, group_by="name"), "group_by: expected a metadata column, one of id, label"),
        (lambda: index.search(query, 1, group_by="label", fuse="sum"), "fuse: expected one of max, mean"),
        (lambda: index.range_search(query, float("nan")), r"threshold: expected a number, got nan\."),
        (lambda: index.range_search(query, "0"), r"threshold: expected a number, got '0'\."),
        (lambda: index.range_search(query, query[0]), "threshold: expected a number, got tensor"),
        (lambda: index.ranks(query, [0, 1], [100]), r"offsets: expected int64 \[8\], one more than queries"),
        (lambda: index.ranks(query, [0] * 7 + [2], [100]), "offsets: expected numbers that ascend from 0 to 1"),
        (lambda: index.ranks(query, [0] * 7 + [1], [[100]]), r"ids: expected int64 \[n\], got list \[1\]"),
        (lambda: index.add(query, torch.arange(7).float()), r"ids: expected int64 \[7\]"),
        (lambda: index.add(query, torch.arange(6)), r"ids: expected int64 \[7\].* got int64 \[6\]"),
        (lambda: index.add(query, [1, 2, 3, 1, 5, 6, 7]), "got 1 twice"),
        (lambda: index.add(query, torch.arange(94, 101)), "ids: expected new ids, got 100, which the index has"),
        (lambda: index.add(query, list("abcdefg")), r"ids: expected int64 \[7\].* as in this index"),
        (lambda: names.add(query), "ids: expected str, as in this index, got None"),
        (lambda: names.add(query[:1], ["\udcff"]), "not valid Unicode"),
        (lambda: index.add(query / 0, torch.arange(7)), "embeddings: .* NaN or Inf in 7 of 7 rows, first in row 0"),
        (lambda: index.add(query, metadata={"label": ["x"]}), "metadata: expected 7 values of 'label'.* got 1"),
        (lambda: index.add(query, metadata={"number": ["x"] * 7}), "metadata: expected int64 in 'number'"),
        (lambda: index.add(query, metadata={"embedding": [1] * 7}), "metadata: expected names of letters"),
        (lambda: index.add(query, metadata={"a b": [1] * 7}), "metadata: expected names of letters"),
        (lambda: index.add(query, metadata={"x": [[1]] * 7}), "metadata: expected bool, numbers, str or times"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(KeyError, match="ids: expected ids of the index, got 99"):
        index.ranks(query, [0] * 7 + [2], [100, 99])
    with pytest.raises(TypeError, match="query: expected a tensor or array of floats"):
        index.search(["a"], 1)
    assert len(index) == 50 and len(names) == 7


def test_rows_that_half_precision_cannot_hold_are_named():
    index = DissimilarityIndex(DissimilarityHead(6, normalize=False).half())
    with pytest.raises(ValueError, match=r"in 1 of 2 rows, first in row 1. The index stores torch.float16"):
        index.add(torch.tensor([1.0, 1e6])[:, None].expand(2, 6))
