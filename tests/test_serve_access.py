"""Who may use the service of a gallery, how large a request may be, and the command that starts it."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from dissim_retrieval import cli
from photo_gallery import BEARER, LOCAL, ROOT, TOKEN, make_gallery, problem, served, write_photos

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from dissim_retrieval.serve import create_app, listen
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos", 3)
    return make_gallery(folder / "gallery.dissim", folder / "photos")


@pytest.fixture(scope="module")
def local(path):
    """A client of a service without a token."""
    with TestClient(create_app(path), base_url=LOCAL) as client:
        yield client


@pytest.fixture(scope="module")
def remote(path):
    """A client of a service with a token, which it sends, and with a limit of 100,000 bytes."""
    app = create_app(path, token=TOKEN, max_upload=100_000)
    with TestClient(app, base_url="http://gallery.example", headers=BEARER) as client:
        yield client


def test_a_body_that_is_too_large_is_not_read(remote):
    with_length = remote.post("/api/search/image", files={"image": ("x", bytes(200_000))})
    assert problem(with_length, 413) == "body: expected at most 100,000 bytes, got more."
    assert asyncio.run(chunks_read(remote.app, "/api/items")) == 3, "reading stopped at 100,000 bytes"


def test_a_search_in_json_is_limited_by_what_it_needs(local):
    """Parsing 14 MiB would block other requests for seconds."""
    kibibytes = 64 * 1024 + 32 * 8
    fits = '{"id": "id2/a.png"' + " " * (kibibytes - 19) + "}"
    json_type = {"Content-Type": "application/json"}
    assert local.post("/api/search", content=fits, headers=json_type).status_code == 200
    too_large = local.post("/api/search", content=fits + " ", headers=json_type)
    assert problem(too_large, 413) == f"body: expected at most {kibibytes:,} bytes, got more."
    parts = local.post("/api/search", content=(part for part in (fits.encode(), b" ")), headers=json_type)
    assert problem(parts, 413) == problem(too_large, 413)
    assert asyncio.run(chunks_read(local.app, "/api/search")) == 2, "also without a Content-Length"
    long = [0.12345678901234567] * 8
    assert local.post("/api/search", json={"embedding": long, "filter": "label = 1" + " " * 3900}).status_code == 200


async def chunks_read(app, path):
    """How many parts of 50,000 bytes of an endless body the application reads."""
    read, status = 0, None

    async def receive():
        nonlocal read
        read += 1
        return {"type": "http.request", "body": bytes(50_000), "more_body": True}

    async def send(message):
        nonlocal status
        status = message.get("status", status)

    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {TOKEN}".encode())]
    headers += [(b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert status == 413
    return read


def test_with_a_token_every_request_to_the_api_needs_it(remote):
    for headers in (
        {"Authorization": ""},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
    ):
        for request in (
            ("GET", "/api/info"), ("GET", "/api/thumbnail?id=id2/a.png"), ("POST", "/api/search"),
            ("POST", "/api/items"), ("DELETE", "/api/items?id=id2/a.png"), ("GET", "/api/nothing"),
        ):  # fmt: skip
            response = remote.request(*request, headers=headers)
            assert "token" in problem(response, 401) and response.headers["www-authenticate"] == "Bearer"
    assert remote.get("/", headers={"Authorization": ""}).status_code == 200
    assert remote.get("/health", headers={"Authorization": ""}).status_code == 200


def test_without_a_token_the_service_only_reads(local):
    for method in ("POST", "DELETE", "PUT"):
        for path in ("/api/items", "/api/items/image", "/api/items?id=id2/a.png"):
            assert "without a token" in problem(local.request(method, path), 403)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "10.0.0.1"]
)
def test_without_a_token_other_host_names_are_denied(local, host):
    """A site whose name resolves to 127.0.0.1 (DNS rebinding)."""
    for path in ("/", "/api/info", "/health"):
        assert "Host: " in problem(local.get(path, headers={"Host": host}), 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:9", "[::1]:8000"])
def test_names_of_this_machine_are_allowed(local, host):
    assert local.get("/api/info", headers={"Host": host}).status_code == 200


def test_scripts_of_other_sites_are_denied(local):
    body = {"id": "id2/a.png"}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", f"{LOCAL}.evil.example"):
        assert "Origin: " in problem(local.post("/api/search", json=body, headers={"Origin": origin}), 403)
    same = local.post("/api/search", json=body, headers={"Origin": LOCAL})
    assert same.status_code == 200 and "access-control-allow-origin" not in same.headers


def test_pages_of_other_sites_do_not_reach_the_api(local):
    """As the address of an image, for which a browser sends no Origin."""
    for site in ("cross-site", "same-site", "", "anything"):
        for path in ("/api/items", "/api/thumbnail?id=id2/a.png", "/api/nothing"):
            assert "Sec-Fetch-Site: " in problem(local.get(path, headers={"Sec-Fetch-Site": site}), 403)
        assert local.get("/", headers={"Sec-Fetch-Site": site}).status_code == 200, "a link to the page"
    for site in ("same-origin", "none"):
        assert local.get("/api/items", headers={"Sec-Fetch-Site": site}).status_code == 200


@pytest.mark.parametrize("prefix", ["/gallery", "/api/search"])
def test_a_mounted_application_is_as_strict(path, prefix):
    with_token, without = create_app(path, token=TOKEN), create_app(path)
    app = Starlette(routes=[Mount(f"{prefix}/remote", with_token), Mount(f"{prefix}/local", without)])
    with TestClient(app, base_url=LOCAL) as client:
        remote, local = f"{prefix}/remote", f"{prefix}/local"
        assert client.get(f"{remote}/").status_code == 200
        for method, route in (("GET", "/api/info"), ("DELETE", "/api/items?id=id2/a.png")):
            assert "token" in problem(client.request(method, remote + route), 401)
        assert client.get(f"{remote}/api/info", headers=BEARER).status_code == 200
        assert client.post(f"{local}/api/search", json={"id": "id2/a.png"}).status_code == 200
        assert "without a token" in problem(client.delete(f"{local}/api/items", params={"id": "id2/a.png"}), 403)
        other = {"Sec-Fetch-Site": "cross-site"}
        assert "Sec-Fetch-Site: " in problem(client.get(f"{local}/api/info", headers=other), 403)


def test_other_machines_need_a_token(path):
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(ValueError, match="token: expected one"):
            listen(host, 0, token=None)
    for token in ("short", "with space in the token", "ä" * 20):
        with pytest.raises(ValueError, match="token: expected at least 16 ASCII characters"):
            create_app(path, token=token)
    with pytest.raises(ValueError, match="max_batch: expected at least 1, got 0"):
        create_app(path, max_batch=0)


# --- command line ---------------------------------------------------------------------------------------------------


def error_line(capsys, *arguments):
    assert cli.main(["serve", *map(str, arguments)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_errors_of_the_command_are_one_line(path, capsys, monkeypatch):
    listening, url = listen("127.0.0.1", 0, token=None)
    port = url.rsplit(":")[-1].strip("/")
    with listening:
        assert "Address already in use. Choose another." in error_line(capsys, path, "--port", port)
    assert "0 to 65535" in error_line(capsys, path, "--port", "70000")
    assert "which does not exist" in error_line(capsys, path.with_name("nothing"))
    assert "DISSIM_TOKEN" in error_line(capsys, path, "--host", "0.0.0.0")
    monkeypatch.setenv("DISSIM_TOKEN", "short")
    assert "16 ASCII characters" in error_line(capsys, path)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install -e '.[serve]'" in error_line(capsys, path)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_command_answers_the_examples_of_the_documentation(path, monkeypatch):
    monkeypatch.setenv("DISSIM_TOKEN", TOKEN)
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "serving.md").read_text(), re.M | re.S)
    examples = [block for block in blocks if "curl" in block]
    assert sum(block.count("curl ") for block in examples) == 4
    with served(path) as (url, process):
        for block in examples:
            text = block.replace("http://127.0.0.1:8000/", url).replace("g/DejaVuSerif.png", "id2/a.png")
            text = text.replace(
                "curl ", 'curl --silent --show-error --fail -H "Authorization: Bearer $DISSIM_TOKEN" '
            )
            environment = {**os.environ, "no_proxy": "127.0.0.1"}
            subprocess.run(["sh", "-ec", text], check=True, cwd=path.parent, env=environment)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors == "dissim: interrupted\n"
