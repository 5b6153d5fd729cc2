"""The service of a gallery: what its routes answer, and the errors of wrong requests."""

import io
import json
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from dissim_retrieval import BackboneWeights, DissimilarityHead, DissimilarityIndex, ProjectedHead
from dissim_retrieval.fitted_gallery import fitted_gallery
from dissim_retrieval.index import lance_store
from dissim_retrieval.index.projection import PROJECTION
from filelock import FileLock
from photo_gallery import BEARER, LOCAL, TOKEN, make_gallery, problem, write_photos
from PIL import Image

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from dissim_retrieval.serve import create_app, gallery
from fastapi.testclient import TestClient


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """photos/ of six identities and gallery.dissim; links in photos/ to a file inside and to one outside."""
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos")
    write_photos(folder / "outside", 1)
    (folder / "photos/id4/inside.png").symlink_to(folder / "photos/id4/a.png")
    (folder / "photos/id5/outside.png").symlink_to(folder / "outside/id0/a.png")
    make_gallery(folder / "gallery.dissim", folder / "photos")
    return folder


@pytest.fixture(scope="module")
def client(made):
    with TestClient(create_app(made / "gallery.dissim"), base_url=LOCAL) as client:
        yield client


@pytest.fixture
def writer(made, tmp_path):
    """A client with the token, of a gallery of its own."""
    index = DissimilarityIndex.open(made / "gallery.dissim")
    index.save(tmp_path / "own.dissim")
    app = create_app(tmp_path / "own.dissim", token=TOKEN, max_upload=1 << 20)
    with TestClient(app, base_url="http://gallery.example", headers=BEARER) as client:
        client.path = tmp_path / "own.dissim"
        yield client


def index_of(made):
    return DissimilarityIndex.open(made / "gallery.dissim")


def image_file(made, name="id2/a.png"):
    return {"image": ("photo.png", (made / "photos" / name).read_bytes())}


def found_ids(response):
    assert response.status_code == 200, response.text
    return [hit["id"] for hit in response.json()["results"]]


# --- read -----------------------------------------------------------------------------------------------------------


def test_health_info_and_page(client):
    assert client.get("/health").json() == {"status": "ok"}
    info = client.get("/api/info").json()
    assert info["columns"] == {"id": "large_string", "label": "int64"}, "without the columns that name files"
    assert (info["rows"], info["version"], info["dim"], info["name"]) == (14, 1, 8, "gallery.dissim")
    assert (info["photos"], info["image_search"], info["writable"]) == (True, None, False)
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name, kind in (("/", "html"), ("/page.js", "javascript"), ("/page.css", "css")):
        file = client.get(name)
        assert file.status_code == 200 and kind in file.headers["content-type"]
        assert "http://" not in file.text and "https://" not in file.text, "the page works offline"


def test_the_schema_describes_every_route(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/health", "/api/info", "/api/search", "/api/search/image", "/api/items", "/api/items/image", "/api/thumbnail"
    }  # fmt: skip
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert operation["description"] and "422" not in operation["responses"]


def test_search_by_embedding_equals_the_index(client, made):
    index, row = index_of(made), np.random.default_rng(0).standard_normal(8)
    expected = index.search(row[None], 5, filter="label < 4")
    response = client.post("/api/search", json={"embedding": row.tolist(), "k": 5, "filter": "label < 4"})
    assert found_ids(response) == expected.ids[0].tolist()
    assert [hit["score"] for hit in response.json()["results"]] == expected.scores[0].tolist()
    assert response.json()["version"] == index.version


def test_search_by_id_and_by_image_find_the_photo_first(client, made):
    by_id = client.post("/api/search", json={"id": "id2/a.png", "k": 3, "metadata": True})
    assert found_ids(by_id)[:2] == ["id2/a.png", "id2/b.png"]
    assert by_id.json()["results"][0]["metadata"] == {"label": 2}, "no path of the machine"
    by_image = client.post("/api/search/image", files=image_file(made), data={"k": 3, "filter": "", "metadata": True})
    assert found_ids(by_image) == found_ids(by_id)
    limited = client.post("/api/search/image", files=image_file(made), data={"k": 3, "filter": "label = 3"})
    assert found_ids(limited) == ["id3/a.png", "id3/b.png"] or found_ids(limited) == ["id3/b.png", "id3/a.png"]


def test_groups_and_more_results_than_rows(client, made):
    grouped = client.post("/api/search", json={"id": "id2/a.png", "k": 9, "group_by": "label", "fuse": "mean"})
    assert sorted(found_ids(grouped)) == [0, 1, 2, 3, 4, 5] and found_ids(grouped)[0] == 2
    assert len(found_ids(client.post("/api/search", json={"id": "id2/a.png", "k": 1000}))) == 14
    assert found_ids(client.post("/api/search", json={"id": "id2/a.png", "filter": "label = 77"})) == []


def test_items_are_paged(client):
    ids, start = [], 0
    while start is not None:
        page = client.get("/api/items", params={"start": start, "count": 5}).json()
        ids, start = ids + page["ids"], page["next"]
    assert len(ids) == 14 == len(set(ids))
    assert client.get("/api/items", params={"filter": "label = 1"}).json() == {
        "ids": ["id1/a.png", "id1/b.png"], "next": None
    }  # fmt: skip


NAN = '{"embedding": [NaN, 0, 0, 0, 0, 0, 0, 0]}'
REQUESTS = [
    ({"k": 3}, 400, "expected an embedding or an id, got none"),
    ({"id": "id2/a.png", "embedding": [0.0] * 8}, 400, "got both"),
    ({"id": "unknown"}, 404, "expected ids of the index, got 'unknown'"),
    ({"id": 3}, 400, "ids: expected str"),
    ({"id": 1 << 80}, 400, "ids: expected str"),
    ({"id": True}, 400, "id"),
    ({"embedding": [0.0] * 7}, 400, "embedding: expected 8 numbers, got 7."),
    ({"embedding": []}, 400, "embedding: expected 8 numbers, got 0."),
    ({"embedding": ["x"] * 8}, 400, "embedding.0"),
    ({"embedding": ["1"] * 8}, 400, "embedding.0"),
    ({"embedding": [True] * 8}, 400, "embedding.0"),
    ({"embedding": [1e300] * 8}, 400, "expected finite numbers"),
    (NAN, 400, "embedding.0: Input should be a finite number."),
    (NAN.replace("NaN", "Infinity"), 400, "finite"),
    (NAN.replace("NaN", "1e999"), 400, "finite"),
    ({"id": "id2/a.png", "k": 0}, 400, "k: "),
    ({"id": "id2/a.png", "k": 1001}, 400, "k: "),
    ({"id": "id2/a.png", "filter": "color = 2"}, 400, "filter: expected an SQL condition on"),
    ({"id": "id2/a.png", "filter": "id = ?"}, 400, "filter: expected an SQL condition on"),
    ({"id": "id2/a.png", "filter": "x" * 5000}, 400, "filter: "),
    ({"id": "id2/a.png", "filter": "file LIKE '/%'"}, 400, "got 'file', which it does not"),
    ({"id": "id2/a.png", "filter": "id = 'a' -- '\n OR `file` LIKE '/%'"}, 400, "got 'file', which it does not"),
    ({"id": "id2/a.png", "filter": """id = "'" OR file LIKE "/%" OR id = "'" """}, 400, "got 'file', which it"),
    ({"id": "id2/a.png", "filter": """`x'` = 1 OR FILE IS NOT NULL OR `x'` = 1"""}, 400, "got 'file', which it"),
    ({"id": "id2/a.png", "group_by": "file"}, 400, "group_by: expected columns that the service shows"),
    ({"id": "id2/a.png", "group_by": "color"}, 400, "group_by: expected a metadata column"),
    ({"id": "id2/a.png", "fuse": "sum"}, 400, "fuse: "),
    ({"id": "id2/a.png", "limit": 3}, 400, "limit: "),
    ({"\ud800": 1}, 400, "unicode"),
    ({"id": "\ud800"}, 400, "not valid Unicode"),
    ({"id": "id2/a.png", "filter": "label = '\ud800'"}, 400, "filter: "),
    ({"id": "id2/a.png", "group_by": "\ud800"}, 400, "group_by"),
    ({"id": "id2/a.png", "filter": "label = '\0'"}, 400, "filter: "),
    ("{", 400, "JSON decode error"),
    ("[" * 60_000, 400, ""),
]


@pytest.mark.parametrize(("body", "status", "text"), REQUESTS, ids=range(len(REQUESTS)))
def test_a_wrong_search_gets_a_sentence(client, body, status, text):
    content = body if isinstance(body, str) else json.dumps(body)
    response = client.post("/api/search", content=content, headers={"Content-Type": "application/json"})
    sentence = problem(response, status)
    assert text in sentence and "\n" not in sentence[:80]


def test_items_are_not_listed_by_a_hidden_column(client):
    condition = """id = "'" OR file LIKE "/%" OR id = "'" """
    assert "which it does not" in problem(client.get("/api/items", params={"filter": condition}), 400)


def test_a_filter_may_have_strings_that_are_names_of_hidden_columns(client):
    assert found_ids(client.post("/api/search", json={"id": "id2/a.png", "filter": "id != 'a file''s name'"}))


# --- photos ---------------------------------------------------------------------------------------------------------


def test_thumbnails(client):
    response = client.get("/api/thumbnail", params={"id": "id2/a.png"})
    assert response.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(response.content)).size == (150, 200)
    assert client.get("/api/thumbnail", params={"id": "id4/inside.png"}).status_code == 200


@pytest.mark.parametrize(
    "id", ["../made/photos/id2/a.png", "/etc/passwd", "id2/../id2/a.png", "id2%2fa.png", "", "\0", "id2/a.png\0"]
)
def test_ids_are_no_paths(client, id):
    problem(client.get("/api/thumbnail", params={"id": id}), 404)


def test_a_link_to_a_photo_outside_of_the_folder_has_no_thumbnail(client):
    assert "in the indexed folder" in problem(client.get("/api/thumbnail", params={"id": "id5/outside.png"}), 404)


def test_rows_that_name_other_files_have_no_thumbnail(made, tmp_path):
    index = DissimilarityIndex.create(tmp_path / "g", DissimilarityHead(2))
    photo, pipe = str(made / "photos/id2/a.png"), str(tmp_path / "pipe.png")
    os.mkfifo(pipe)
    (tmp_path / "text.png").write_text("no image")
    files = {
        "../id2/a.png": str(made / "photos/id1/../id2/a.png"), "b.png": photo, "gone.png": str(tmp_path / "gone.png"),
        "pipe.png": pipe, "text.png": str(tmp_path / "text.png"), "none": None,
    }  # fmt: skip
    index.add(torch.rand(len(files), 2), list(files), {"file": list(files.values())})
    with TestClient(create_app(tmp_path / "g"), base_url=LOCAL) as client:
        for name in files:
            problem(client.get("/api/thumbnail", params={"id": name}), 404)


def test_uploads_that_are_no_photos(client, made):
    def upload(content, **fields):
        return client.post("/api/search/image", files={"image": ("x.png", content)}, data=fields)

    assert "in none of the formats" in problem(upload(b"no image"), 400)
    assert "can be decoded" in problem(upload((made / "photos/id2/a.png").read_bytes()[:500]), 400)
    assert "k: " in problem(upload(b"", k=-1), 400)
    assert "image: " in problem(client.post("/api/search/image", data={"image": "text"}), 400)
    assert "image: " in problem(client.post("/api/search/image"), 400)


def test_image_bombs_are_not_decoded(client):
    """A PNG of 3.6 gigapixels in 4 MB: decoded, it would need 3.6 GB."""
    side = 60_000

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(4_000_000), 9) * 10
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    sentence = problem(client.post("/api/search/image", files={"image": ("bomb.png", bomb)}), 400)
    assert "pixels" in sentence


def test_a_gallery_without_a_network_says_so(made, tmp_path):
    make_gallery(tmp_path / "g", made / "photos", network=False)
    with TestClient(create_app(tmp_path / "g"), base_url=LOCAL) as client:
        assert "without a network" in problem(client.post("/api/search/image", files=image_file(made)), 400)
        assert "without a network" in client.get("/api/info").json()["image_search"]
        assert found_ids(client.post("/api/search", json={"id": "id2/a.png"}))


@pytest.mark.parametrize(
    ("provenance", "name", "why"),
    [
        ({"model": "4f1c"}, "small", "without a network"),
        ({"transform": "resized"}, "small", "without a network"),
        ({"transform": {"size": 20}}, "small", "without a network"),
        ({"fit": "4f1c"}, "small", "without a network"),
        ({"transform": {"size": [20, 16]}}, "small", "got one whose weights are not those of small"),
        ({"transform": {"size": [20, 16]}}, "my network", "backbone: expected one of"),
    ],
)
def test_a_gallery_of_another_program_is_searched_by_id(provenance, name, why, tmp_path):
    weights = BackboneWeights(name, {"weight": torch.ones(1)})
    index = DissimilarityIndex.create(tmp_path / "g", DissimilarityHead(2), provenance=provenance, backbone=weights)
    index.add(torch.rand(2, 2), ["a", "b"], {"file": [1, 2]})
    with TestClient(create_app(tmp_path / "g"), base_url=LOCAL) as client:
        assert why in client.get("/api/info").json()["image_search"]
        assert found_ids(client.post("/api/search", json={"id": "a", "k": 1})) == ["a"]
        problem(client.get("/api/thumbnail", params={"id": "a"}), 404)


def test_a_gallery_of_dissim_fit_projects_the_embeddings_of_requests(tmp_path):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 6, generator=draw)
    fitted = ProjectedHead(rows.mean(0), torch.randn(6, 3, generator=draw), DissimilarityHead(3))
    index = fitted_gallery(fitted)
    index.add(fitted.project(rows[:4]).detach(), list("abcd"))
    index.save(tmp_path / "g")
    with TestClient(create_app(tmp_path / "g", token=TOKEN), base_url=LOCAL, headers=BEARER) as client:
        assert client.get("/api/info").json()["dim"] == 6
        new = {"embeddings": rows[4:].tolist(), "ids": ["e"]}
        assert client.post("/api/items", json=new).status_code == 201
        assert client.post("/api/items", json={"embeddings": [], "ids": []}).json()["ids"] == []
        scores = fitted(rows[2:3], rows)[0]
        for query in ({"embedding": rows[2].tolist()}, {"id": "c"}):
            found = client.post("/api/search", json=query).json()["results"]
            assert [hit["id"] for hit in found] == ["abcde"[row] for row in scores.argsort(descending=True)]
            assert [hit["score"] for hit in found] == pytest.approx(scores.sort(descending=True).values.tolist())
        for body in ({"embeddings": [[1.0] * 3]}, {"embeddings": [[1.0] * 7]}):
            assert "expected rows of 6 numbers" in problem(client.post("/api/items", json=body), 400)
        assert "expected 6 numbers" in problem(client.post("/api/search", json={"embedding": [1.0] * 3}), 400)


def test_a_projection_that_does_not_fit_the_head_is_an_error(tmp_path):
    for number, state in enumerate(
        ({"mean": torch.zeros(6)}, {"mean": torch.zeros(6), "projection": torch.ones(6, 2)})
    ):
        weights = BackboneWeights(PROJECTION, state)
        path = tmp_path / str(number)
        DissimilarityIndex.create(path, DissimilarityHead(3), provenance={"fit": "4f1c"}, backbone=weights)
        with pytest.raises(ValueError, match=r"gallery: expected mean \[D\] and projection \[D, 3\]"):
            create_app(path)


# --- write ----------------------------------------------------------------------------------------------------------


def test_added_rows_are_found_and_removed_rows_are_not(writer, made):
    row = np.random.default_rng(1).standard_normal(8).tolist()
    added = writer.post(
        "/api/items", json={"embeddings": [row], "ids": ["new"], "metadata": {"label": [9], "size": [2.5]}}
    )
    assert added.status_code == 201 and added.json()["ids"] == ["new"]
    response = writer.post("/api/search", json={"embedding": row, "k": 1, "metadata": True})
    assert response.json()["results"][0]["metadata"] == {"label": 9, "size": 2.5}
    assert response.json()["version"] == added.json()["version"]
    assert "new" in DissimilarityIndex.open(writer.path).ids()
    assert "size" in writer.get("/api/info").json()["columns"]

    removed = writer.delete("/api/items", params={"id": ["new", "id2/a.png"]})
    assert removed.json()["ids"] == ["new", "id2/a.png"]
    assert not {"new", "id2/a.png"} & set(found_ids(writer.post("/api/search", json={"embedding": row, "k": 99})))
    assert "'new'" in problem(writer.delete("/api/items", params={"id": "new"}), 404)


def test_an_image_is_added(writer, made):
    data = {"id": "ada", "metadata": '{"label": 7}'}
    assert writer.post("/api/items/image", files=image_file(made), data=data).status_code == 201
    found = writer.post("/api/search/image", files=image_file(made), data={"k": 1, "filter": "label = 7"})
    assert found_ids(found) == ["ada"]
    assert "which the index has" in problem(writer.post("/api/items/image", files=image_file(made), data=data), 400)
    problem(writer.get("/api/thumbnail", params={"id": "ada"}), 404)  # the image itself is not kept


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"embeddings": [[0.0] * 8], "ids": ["id2/a.png"]}, "which the index has"),
        ({"embeddings": [[0.0] * 8]}, "expected str"),
        ({"embeddings": [[0.0] * 8], "ids": [1]}, "expected str"),
        ({"embeddings": [[0.0] * 8, [0.0] * 3], "ids": ["a", "b"]}, "rows of 8 numbers, got 3"),
        ({"embeddings": [[0.0] * 8], "ids": ["a", "b"]}, "ids: expected str [1]"),
        ({"embeddings": [[0.0] * 8] * 2, "ids": ["a", 1]}, "got int and str [2]"),
        ({"embeddings": [[True] * 8], "ids": ["a"]}, "embeddings.0.0"),
        ({"embeddings": [[0.0] * 8], "ids": ["a"], "metadata": {"label": [True]}}, "metadata: expected int64"),
        ({"embeddings": [[0.0] * 8], "ids": ["a"], "metadata": {"label": [1 << 70]}}, "metadata: expected int64"),
        ({"embeddings": [[0.0] * 8], "ids": ["a"], "metadata": {"label": ["x"]}}, "metadata"),
        ({"embeddings": [[0.0] * 8], "ids": ["a"], "metadata": {"label": [[1, 2]]}}, "metadata"),
        ({"embeddings": [[0.0] * 8], "ids": ["etc/x.png"], "metadata": {"file": ["/etc/x.png"]}}, "got 'file'"),
    ],
)
def test_wrong_rows_are_not_added(writer, body, text):
    before = writer.get("/api/info").json()["version"]
    assert text in problem(writer.post("/api/items", json=body), 400)
    assert writer.get("/api/info").json()["version"] == before


def test_metadata_that_json_does_not_have(writer):
    """NaN is written by others: the service takes no such numbers."""
    index = DissimilarityIndex.open(writer.path)
    index.add(np.ones((2, 8)), ["x", "y"], {"size": [float("nan"), float("inf")]})
    writer.post("/api/items", json={"embeddings": [[1.0] * 8], "ids": ["z"]})  # the service sees both writes
    response = writer.post("/api/search", json={"id": "x", "k": 3, "metadata": True})
    assert [hit["metadata"]["size"] for hit in response.json()["results"]] == [None, None, None]
    assert "NaN" not in response.text and "Infinity" not in response.text


def test_a_gallery_whose_ids_are_numbers(tmp_path):
    DissimilarityIndex.create(tmp_path / "g", DissimilarityHead(2))
    with TestClient(create_app(tmp_path / "g", token=TOKEN), base_url=LOCAL, headers=BEARER) as client:
        assert found_ids(client.post("/api/search", json={"embedding": [1, 2]})) == []
        assert client.get("/api/items").json() == {"ids": [], "next": None}
        added = client.post("/api/items", json={"embeddings": [[1, 2], [2, -1], [0, 1]]})
        assert added.json()["ids"] == [0, 1, 2]
        assert found_ids(client.post("/api/search", json={"id": 1, "k": 1})) == [1]
        assert client.delete("/api/items", params={"id": 1}).json()["ids"] == [1]
        assert client.get("/api/items").json()["ids"] == [0, 2]
        for other in ("x", "1_0", " 0", "+0"):
            assert "expected numbers" in problem(client.delete("/api/items", params={"id": other}), 400)
        mixed = {"embeddings": [[1, 2], [2, -1]], "ids": [7, "a"]}
        assert "got int and str [2]" in problem(client.post("/api/items", json=mixed), 400)


def test_writes_of_another_process_are_seen_within_a_second(client, writer, monkeypatch):
    index = DissimilarityIndex.open(writer.path)
    index.add(np.ones((1, 8)), ["from elsewhere"])
    monkeypatch.setattr(gallery, "REFRESH_SECONDS", 0)
    assert writer.get("/api/items", params={"filter": "id = 'from elsewhere'"}).json()["ids"] == ["from elsewhere"]


def test_a_gallery_that_was_replaced_or_is_gone_is_not_searched(writer, made, monkeypatch, caplog):
    monkeypatch.setattr(gallery, "REFRESH_SECONDS", 0)
    writer.path.rename(writer.path.with_name("old"))
    assert "log" in problem(writer.post("/api/search", json={"id": "id2/a.png"}), 503)
    index_of(made).save(writer.path)
    for response in (
        writer.get("/health"), writer.post("/api/items", json={"embeddings": [[1.0] * 8], "ids": ["x"]})
    ):  # fmt: skip
        sentence = problem(response, 503)
        assert str(writer.path) not in sentence
    assert f"{writer.path} was replaced" in caplog.text


def test_a_write_that_waits_for_another_delays_no_search(writer, monkeypatch):
    """The other writer is in this process; two seconds of waiting stand for ten."""
    monkeypatch.setattr(lance_store, "LOCK_SECONDS", 2)
    body = {"embeddings": [[1.0] * 8], "ids": ["x"]}
    with FileLock(writer.path / "write.lock"), ThreadPoolExecutor() as pool:
        write = pool.submit(writer.post, "/api/items", json=body)
        assert found_ids(writer.post("/api/search", json={"id": "id2/a.png"}))
        assert not write.done()
        assert "Another program is writing" in problem(write.result(), 503)
    assert writer.post("/api/items", json=body).status_code == 201
