"""What the index makes of ids and metadata: the same values, or an error. NumPy and Arrow would convert some."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex

LARGEST = 2**63 - 1


def index_of(ids, metadata=None):
    index = DissimilarityIndex(DissimilarityHead(3))
    index.add(torch.randn(len(ids), 3), ids, metadata)
    return index


@pytest.mark.parametrize(
    ("ids", "stored"),
    [
        ([3, np.int8(1), torch.tensor(2), np.array(4)], [3, 1, 2, 4]),
        ([np.uint64(5), np.int64(-3)], [5, -3]),  # float64 in NumPy
        ([LARGEST, -LARGEST - 1], [LARGEST, -LARGEST - 1]),
        (range(2), [0, 1]),
        (np.array([1, 2], ">i4")[::-1], [2, 1]),
        (np.array([1, 2], object), [1, 2]),
        (pa.array([1, 2]), [1, 2]),
        (["a", np.str_("b")], ["a", "b"]),
        (["a\0", "a"], ["a\0", "a"]),  # an array of NumPy has no zeros at the end
        (np.array(["a", "bc"]), ["a", "bc"]),
        (("1", "2"), ["1", "2"]),
    ],
)
def test_ids_are_stored_as_they_are(ids, stored):
    index = index_of(ids)
    assert index.ids().tolist() == stored and index.contains(ids).all()
    assert index.search(torch.ones(1, 3), 9, filter=ids).ids.tolist()[0][: len(ids)] != [-1] * len(ids)
    assert index.ranks(torch.ones(1, 3), [0, 2], [stored[0], stored[0]]).unique().numel() == 1


@pytest.mark.parametrize(
    ("ids", "got"),
    [
        ([1, "a"], r"int and str \[2\]"),
        (["a", 1], r"int and str \[2\]"),
        ([1.5, "a"], r"float and str \[2\]"),
        ([1, 1.0], r"float and int \[2\]"),
        ([True, 2], r"bool and int \[2\]"),
        ([np.True_, 2], r"bool and int \[2\]"),
        ([True, False], r"bool \[2\]"),
        (np.array([True, False]), r"bool \[2\]"),
        ([None, "a"], r"NoneType and str \[2\]"),
        ([b"a", "b"], r"bytes and str \[2\]"),
        (np.array([b"a", b"b"]), r"\|S1 \[2\]"),
        (np.array([1, "a"], object), r"object \[2\]"),
        ([[1], [2, 3]], r"list \[2\]"),
        (torch.tensor([[1], [2]]), r"int64 \[2, 1\]"),
        (torch.tensor([1, 2], dtype=torch.bfloat16), r"bfloat16 \[2\]"),
        ({1, 2}, "set"),
        ("ab", "str"),
        (7, "int"),
        ([2**63, 1], "9223372036854775808, which int64 cannot hold"),
        ([2**64, -1], "18446744073709551616, which int64 cannot hold"),
        ([-(2**63) - 1, 1], "-9223372036854775809, which int64 cannot hold"),
        (np.array([2**63, 1], np.uint64), "9223372036854775808, which int64 cannot hold"),
    ],
    ids=repr,
)
def test_other_ids_are_an_error_wherever_they_are_passed(ids, got):
    message = rf"(ids|filter): expected int64( or str)? \[.\].*, got {got}"
    index, query = index_of([1, 2]), torch.ones(1, 3)
    for call in (
        lambda: DissimilarityIndex(index.head).add(torch.randn(2, 3), ids),
        lambda: DissimilarityIndex(index.head).contains(ids),
        lambda: index.update(torch.randn(2, 3), ids),
        lambda: index.remove(ids),
        lambda: index.get(ids),
        lambda: index.contains(ids),
        lambda: index.ranks(query, [0, 2], ids),
        *([] if isinstance(ids, str) else [lambda: index.search(query, 1, filter=ids)]),  # else a condition
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert len(index) == 2


@pytest.mark.parametrize(
    ("first", "second", "stored"),
    [
        ([1], [2.0], [1, 2]),
        ([1.5], [2], [1.5, 2.0]),
        (["a"], [None], ["a", None]),
        (np.array(["a"]), ["b"], ["a", "b"]),
        ([datetime.date(2026, 1, 2)], ["2026-01-03"], [datetime.date(2026, 1, 2), datetime.date(2026, 1, 3)]),
        ([1], [True], None),
        ([1], ["2"], None),
        ([1], [2.5], None),
        ([1], [2**70], None),
        ([True], [5], None),
        ([True], ["true"], None),
        (["a"], [1], None),
        (["a"], [True], None),
        ([datetime.date(2026, 1, 2)], [5], None),
    ],
    ids=repr,
)
def test_values_of_a_column_keep_their_meaning(first, second, stored):
    index = index_of(["x"], {"column": first})
    if stored is None:
        with pytest.raises(ValueError, match=r"metadata: expected .* in 'column', got"):
            index.add(torch.randn(1, 3), ["y"], {"column": second})
        assert len(index) == 1
    else:
        index.add(torch.randn(1, 3), ["y"], {"column": second})
        assert index.get(["x", "y"]).metadata == {"column": stored}


TIMES = np.array(["2026-01-02T03:04:05.123456789", "NaT"], "datetime64[ns]")
TIME = datetime.datetime(2026, 1, 2, 3, 4, 5, 123456)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        (TIMES, TIME),
        (pa.array(TIMES).cast(pa.timestamp("ns", "UTC")), TIME.replace(tzinfo=datetime.UTC)),
        (np.array([-1_234_567_890, "NaT"], "timedelta64[ns]"), datetime.timedelta(seconds=-1, microseconds=-234567)),
        (pa.array([1_234_567_890, None], pa.time64("ns")), datetime.time(0, 0, 1, 234567)),
        (pa.array(["a", None], pa.string_view()), "a"),
    ],
    ids=["timestamp", "with a zone", "duration", "time", "view"],
)
def test_columns_that_python_or_arrow_cannot_hold(column, value, on_disk, tmp_path):
    """Nanoseconds are stored, but results have microseconds."""
    head = DissimilarityHead(3)
    index = DissimilarityIndex.create(tmp_path / "g", head) if on_disk else DissimilarityIndex(head)
    index.add(torch.randn(2, 3), ["x", "y"], {"column": column})
    assert index.get(["y", "x"]).metadata == {"column": [None, value]}
    assert index.search(torch.randn(1, 3), 1, group_by="column").ids.tolist() == [[value]]
    index.update(torch.randn(1, 3), ["x"])
    index.optimize()
    assert index.ids("column IS NOT NULL").tolist() == ["x"]
    index.save(tmp_path / "copy")
    opened = DissimilarityIndex.open(tmp_path / "copy", verify=True)
    assert opened.get(["x"]).metadata == {"column": [value]}
    assert opened.columns["column"].endswith("]") == ("ns" in opened.columns["column"])


@pytest.mark.parametrize("encode", [pa.Array.dictionary_encode, pa.Array.to_pylist], ids=["categories", "list"])
def test_categories_are_text(encode):
    index = index_of(["x"], {"column": pa.array(["a"]).dictionary_encode()})
    index.add(torch.randn(1, 3), ["y"], {"column": encode(pa.array(["b"]))})
    assert index.get(["x", "y"]).metadata == {"column": ["a", "b"]}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([10**13], pa.timestamp("s")),
        pa.array([10**17], pa.date64()),
        pa.array([-(10**6)], pa.date32()),
        pa.array([10**15], pa.duration("s")),
    ],
    ids=lambda column: str(column.type),
)
def test_times_that_python_cannot_hold_name_their_column(column):
    index = index_of([1], {"time": column})
    for read in (lambda: index.get([1]), lambda: index.search(torch.ones(1, 3), 1, group_by="time")):
        with pytest.raises(ValueError, match=r"^time: expected values that Python can hold, .* got others of type"):
            read()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"a"]),
        pa.array([b"a"], pa.large_binary()),
        pa.array([b"a"], pa.binary(1)),
        pa.array([b"a"], pa.binary_view()),
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.array([[1]]),
        pa.array([{"a": 1}]),
    ],
    ids=lambda column: str(column.type),
)
def test_other_types_of_columns_are_an_error(column):
    with pytest.raises(ValueError, match="metadata: expected bool, numbers, str or times in 'column', got"):
        index_of([1], {"column": column})


def test_a_column_of_bfloat16_has_its_numbers():
    index = index_of([1, 2], {"column": torch.tensor([0.5, 3], dtype=torch.bfloat16)})
    assert index.get([1, 2]).metadata == {"column": [0.5, 3.0]} and index.ids("column > 1").tolist() == [2]


def test_a_number_beyond_int64_in_a_new_column_is_an_error():
    with pytest.raises(ValueError, match="metadata: expected bool, numbers, str or times in 'column', got"):
        index_of([1], {"column": [2**70]})


class Squared(DissimilarityHead):
    def forward(self, query, reference):
        return -super().forward(query, reference).square()


class OfAbsolute(DissimilarityHead):
    def transform(self, embeddings):
        return super().transform(embeddings.abs())


def test_a_head_with_other_scores_is_an_error(tmp_path):
    message = "head: expected a DissimilarityHead, .* got a Squared with its own forward. Keep it in memory"
    for make in (DissimilarityIndex, lambda head: DissimilarityIndex.create(tmp_path / "g", head)):
        with pytest.raises(TypeError, match=message):
            make(Squared(3))
    assert not any(tmp_path.iterdir())


def test_a_head_with_its_own_transform_is_used_in_memory():
    head, rows = OfAbsolute(3), torch.randn(6, 3)
    index = DissimilarityIndex(head)
    index.add(rows)
    expected = head(rows[:2], rows).topk(3)
    assert torch.equal(index.search(rows[:2], 3).ids, expected.indices)
