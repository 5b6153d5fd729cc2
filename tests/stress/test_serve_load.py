"""The service under load: 32 clients for a minute on 200,000 rows. SERVE_SECONDS and SERVE_ROWS make it shorter."""

import os

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from bench import serve_load


def test_32_clients_for_a_minute():
    seconds, rows = float(os.environ.get("SERVE_SECONDS", 60)), int(os.environ.get("SERVE_ROWS", 200_000))
    one, unshared, shared = serve_load.measure(rows=rows, dim=256, clients=32, seconds=seconds)
    print("\n" + serve_load.table([one, unshared, shared]))
    assert not one.errors + unshared.errors + shared.errors
    assert shared.rate > 2 * one.rate
    assert shared.rate > unshared.rate
