"""Filters and ids of requests: what could exhaust the memory or end the service is an error, ids keep all digits."""

import os

import numpy as np
import pyarrow as pa
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from photo_gallery import BEARER, LOCAL, TOKEN, problem

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from dissim_retrieval.serve import create_app
from fastapi.testclient import TestClient

#: Numbers that JavaScript and float64 do not tell apart.
LARGE = [2**53, 2**53 + 1, 2**63 - 1, -(2**63)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Rows with large numbers as ids, each most similar to itself."""
    path = tmp_path_factory.mktemp("made") / "g"
    DissimilarityIndex.create(path, DissimilarityHead(4)).add(torch.eye(4), LARGE, {"name": ["a", "b", "c (d)", "e"]})
    return path


@pytest.fixture(scope="module")
def client(path):
    with TestClient(create_app(path), base_url=LOCAL) as client:
        yield client


def search(client, filter):
    """By both routes that take a filter."""
    return client.get("/api/items", params={"filter": filter}), client.post(
        "/api/search", json={"id": LARGE[0], "filter": filter}
    )


@pytest.mark.parametrize(
    ("filter", "name"),
    [
        ("length(repeat(id, 300000000)) > 1", "repeat"),
        ("length(REPEAT (name, 300000000)) > 1", "repeat"),
        ("length(`repeat`(name, 300000000)) > 1", "repeat"),
        ("length(repeat -- comment\n(name, 300000000)) > 1", "repeat"),
        ("length(repeat/* comment */(name, 300000000)) > 1", "repeat"),
        ("length(rpad(name, 300000000)) > 1", "rpad"),
        ("array_length(array_repeat(1, 300000000)) > 1", "array_length"),
        ("name = 'lower' OR length(lpad(name, 300000000)) > 1", "lpad"),
        ("""name = "'" OR length(lpad(name, 300000000)) > 1 OR name = "'" """, "lpad"),
    ],
)
def test_functions_that_make_large_values_are_not_called(client, filter, name):
    for response in search(client, filter):
        assert f"got {name!r}" in problem(response, 400) and "filter: " in response.json()["detail"]


@pytest.mark.parametrize("filter", ["1=1" + "+1" * 1900, "id=" + "||".join(["id"] * 990)], ids=["sum", "text"])
def test_deep_conditions_do_not_end_the_service(client, filter):
    for response in search(client, filter):
        assert "at most 100 operators" in problem(response, 400)


@pytest.mark.parametrize(
    ("filter", "count"),
    [
        ("name IN ('a', 'b')", 2),
        ("name IN('a') OR(name = 'b') AND NOT(name = 'c')", 2),
        ("lower(name) = 'a' OR length(name) > 1 OR starts_with(name, 'b')", 3),
        ("cast(id AS double) > 0 AND abs(1) = 1", 3),
        ("cast(id AS decimal(20, 1)) > 0", 3),
        ("cast('2026-01-02' AS timestamp(3)) > cast('2026-01-01' AS datetime(3)) AND name = 'a'", 1),
        ("`name` = 'repeat (x)' OR name = 'c (d)' -- rpad (c)", 1),
        ('name = "c (d)"', 1),
    ],
)
def test_other_conditions_are_answered(client, filter, count):
    items, found = search(client, filter)
    assert len(items.json()["ids"]) == len(found.json()["results"]) == count


def test_ids_that_javascript_cannot_hold_may_be_text(path, tmp_path):
    DissimilarityIndex.open(path).save(tmp_path / "g")
    with TestClient(create_app(tmp_path / "g", token=TOKEN), base_url=LOCAL, headers=BEARER) as client:
        assert client.get("/api/items").json()["ids"] == LARGE
        for id in LARGE:
            for given in (id, str(id)):
                found = client.post("/api/search", json={"id": given, "k": 1})
                assert found.json()["results"][0]["id"] == id
            assert "expected a row with a photo" in problem(client.get("/api/thumbnail", params={"id": id}), 404)
        for wrong in ("x", "1_0", "1.0", ""):
            assert "id: expected numbers" in problem(client.post("/api/search", json={"id": wrong}), 400)
            assert "id: expected numbers" in problem(client.get("/api/thumbnail", params={"id": wrong}), 400)
        assert "int64 cannot hold" in problem(client.post("/api/search", json={"id": str(2**63)}), 400)
        assert client.delete("/api/items", params={"id": LARGE[1]}).json()["ids"] == [LARGE[1]]


def test_times_are_answered_in_microseconds(tmp_path):
    times = np.array(["2026-01-02T03:04:05.123456789"], "datetime64[ns]")
    DissimilarityIndex.create(tmp_path / "g", DissimilarityHead(2)).add(torch.ones(1, 2), [1], {"time": times})
    with TestClient(create_app(tmp_path / "g"), base_url=LOCAL) as client:
        for options in ({"metadata": True}, {"group_by": "time"}):
            answer = client.post("/api/search", json={"id": 1, **options})
            assert answer.status_code == 200 and "2026-01-02T03:04:05.123456" in answer.text


def test_times_of_other_programs_that_python_cannot_hold_are_named(tmp_path):
    times = pa.array([10**13], pa.timestamp("s"))
    DissimilarityIndex.create(tmp_path / "g", DissimilarityHead(2)).add(torch.ones(1, 2), [1], {"time": times})
    with TestClient(create_app(tmp_path / "g"), base_url=LOCAL) as client:
        query = {"embedding": [1, 1]}
        for options in ({"metadata": True}, {"group_by": "time"}):
            answer = client.post("/api/search", json=query | options)
            assert "time: expected values that Python can hold" in problem(answer, 400)
        assert client.post("/api/search", json=query).status_code == 200


def test_a_service_does_not_depend_on_the_current_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parent)
    app = create_app(path.name, token=TOKEN)
    os.chdir(tmp_path)
    with TestClient(app, base_url=LOCAL, headers=BEARER) as client:
        assert client.get("/api/info").json()["name"] == "g"
        assert client.delete("/api/items", params={"id": 5}).status_code == 404, "the gallery is opened to write"
        app.state.gallery._checked = float("-inf")
        assert client.get("/health").status_code == 200
