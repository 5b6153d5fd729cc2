"""Filters of searches: the whole condition applies, or it is an error that quotes it. None ends the process."""

import os
import subprocess
import sys

import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex

NAMES = ["a", "b", "c (d", "it's", "x -- y"]


@pytest.fixture(scope="module", params=["memory", "disk"])
def index(request, tmp_path_factory):
    """Rows 0 to 4, whose labels are their ids."""
    head = DissimilarityHead(3)
    on_disk = request.param == "disk"
    index = DissimilarityIndex.create(tmp_path_factory.mktemp("made") / "g", head) if on_disk else None
    index = index or DissimilarityIndex(head)
    index.add(torch.randn(5, 3), range(5), {"label": range(5), "name": NAMES})
    return index


@pytest.mark.parametrize(
    "condition",
    [
        "label > 0 ADN name = 'b'",
        "label = 1 2",
        "label = 1 LIMIT 1",
        "label = 1 ORDER BY id",
        "label = 1; SELECT 1",
        "label = 1) OR (1 = 1",
        "label = 1) -- (",
        "label = 1)",
        "(label = 1",
        "label = 1 -- \n) OR (1 = 1",
        "label = 1 /* ( */ ) OR (1 = 1",
        "`label` = 1 AND name = ')' ) OR ( name = '('",
        """name = "(" ) OR (1 = 1 AND name != ")" """,
    ],
)
def test_what_follows_a_condition_is_not_ignored(index, condition):
    for search in (index.ids, lambda filter: index.search(torch.ones(1, 3), 2, filter=filter)):
        with pytest.raises(ValueError, match="filter: expected an SQL condition on id, label, name, got") as caught:
            search(condition)
        text = str(caught.value)
        assert repr(condition) in text and "\\n)" not in text.replace(repr(condition), "")
        assert not text.endswith("..") and "/home" not in text


def test_the_error_names_what_is_wrong(index):
    for condition, reason in (
        ("label > 0 ADN name = 'b'", "found: ADN"),
        ("label = 1\nLIMIT 1", "found: LIMIT"),
        ("label = 1) OR (1 = 1", "a parenthesis is closed that was not opened"),
        ("colour = 1", "No field named colour"),
        ("(label = 1) BETWEEN 0 AND 1", "Failed to coerce types Boolean and Int64"),
        ("label = 1 LIMIT 1 -- LanceError(IO)", "found: LIMIT"),
        ("cast(concat(name, 'LanceError(IO)') AS int) = 1", "Cannot cast string"),
    ):
        with pytest.raises(ValueError, match=reason):
            index.ids(condition)


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("label > 2", [3, 4]),
        ("label > 2 -- comment", [3, 4]),
        ("label > 2 -- )", [3, 4]),
        ("label > 2 /* ) */", [3, 4]),
        ("-- first\nlabel > 2 -- last", [3, 4]),
        ("`label` > 2 AND `id` < 4", [3]),
        ("(label = 1) OR (label = 2)", [1, 2]),
        ("label = 1 OR label = 2", [1, 2]),
        ("name = 'c (d'", [2]),
        ('name = "c (d"', [2]),
        ("name = 'it''s'", [3]),
        ("name = 'x -- y' OR label = 0", [0, 4]),
        ("name IN ('a', ')', '(')", [0]),
        ("length(lower(name)) = (1)", [0, 1]),
        ("label IN (" + ", ".join(f"-{n}" for n in range(200)) + ")", [0]),
        ("name != '" + "+" * 200 + "' AND label = 1", [1]),
        ("label = 0" + " + 1" * 100, []),
        ("1. > 0" + " + 1." * 100, []),
        ("(label = 2) = true AND (label < 9) != (label = 1)", [2]),
        (" OR ".join(["label = 3"] * 500), [3]),
        ([4, 1, 4, 77], [1, 4]),  # an id twice is once
        ([], []),
    ],
)
def test_correct_filters_are_applied(index, condition, ids):
    assert index.ids(condition).tolist() == ids


@pytest.mark.parametrize(
    "condition",
    [
        "1=1" + "+1" * 1990,
        "1 > 1" + "+1." * 250,
        "name=" + "||".join(["name"] * 990),
        "label" + "::int" * 700 + "=1",
        "1=1" + "*1" * 101,
        "true" + "=true" * 250,
        "1<2" + " != (1<2)" * 250,
    ],
    ids=["sum", "sum of floats", "text", "cast", "product", "comparisons", "comparisons in parentheses"],
)
def test_a_condition_that_is_too_deep_is_an_error(index, condition):
    with pytest.raises(ValueError, match=r"expected at most 100 operators .*, got \d+"):
        index.ids(condition)


def test_errors_about_a_list_name_the_filter(index):
    for wrong, got in ((["x"], r"str \[1\]"), (7, "int"), ([1.5], r"float \[1\]"), ([2**70], "which int64 cannot")):
        with pytest.raises(ValueError, match=rf"^filter: expected int64 \[n\].* got .*{got}"):
            index.search(torch.ones(1, 3), 1, filter=wrong)


def test_threads_of_lance_have_a_large_stack():
    """A second defense: even a condition that is not checked leaves the process alive."""
    script = (
        "import torch; from dissim_retrieval import DissimilarityHead, DissimilarityIndex\n"
        "index = DissimilarityIndex(DissimilarityHead(3)); index.add(torch.ones(2, 3))\n"
        "print(len(index._store.select(index._snapshot, 'id' + '::int' * 700 + ' = 1', [])))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RUST_MIN_STACK"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr[-2000:]
