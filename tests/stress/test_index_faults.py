"""The index: 200 killed writers, a minute of searches during writes, 1,000 drawn cases, 600 damaged files."""

import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from dissim_retrieval.index import prepared_files
from dissim_retrieval.index.preparation import Preparation

sys.path.append(str(Path(__file__).parents[1]))
from index_killing import error_in_a_process, kill_at_random_moments
from index_model import Model, apply_write, check_search
from index_threads import search_while_writing


@pytest.fixture(autouse=True)
def _small_segments_are_prepared(monkeypatch):
    monkeypatch.setattr(prepared_files, "FILE_MIN_ROWS", 1)
    monkeypatch.setattr(Preparation, "min_rows", 1)


@pytest.mark.parametrize(("seed", "option"), [(0, None), (1, None), (2, "quantized"), (3, "clustered")])
def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path, seed, option):
    options = {} if option is None else {option: True}
    assert kill_at_random_moments(tmp_path / "index", kills=50, seed=seed, **options) > 50


@pytest.mark.parametrize("on_disk", [False, True])
def test_eight_threads_search_while_one_writes(tmp_path, on_disk):
    search_while_writing(tmp_path / "index" if on_disk else None, seconds=60, threads=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_drawn_searches_equal_a_full_sort(dtype):
    for seed in range(250):
        rng = np.random.default_rng(seed)
        dim, normalize = int(rng.integers(1, 40)), bool(rng.integers(2))
        options = [{}, {"quantized": True}, {"clustered": True}][rng.integers(3)]
        head = DissimilarityHead(dim, sign="free", normalize=normalize)
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))
        index, model = DissimilarityIndex(head.to(dtype), **options), Model(dim, ids=[int, str][seed % 2])
        for _ in range(int(rng.integers(1, 30))):
            write = model.draw(rng, max_rows=12)
            apply_write(index, write)
            model.apply(write)
        rows = int(rng.integers(1, 20))
        query = torch.from_numpy(rng.standard_normal((rows, dim)).astype(np.float32))
        check_search(index, model, query, int(rng.integers(1, 30)), rng.choice([None, "red"]))


def open_and_verify(path, expected, options):
    """Raises a ValueError, or the index is as it was."""
    torch.set_num_threads(1)
    prepared_files.FILE_MIN_ROWS = Preparation.min_rows = 1
    index = DissimilarityIndex.open(path, verify=True, **options)
    stored = index.get(expected[0])
    assert len(index) == len(expected[0]) and torch.equal(stored.embeddings, expected[1])


@pytest.mark.parametrize("options", [{}, {"quantized": True}, {"clustered": True}])
def test_damaged_files_raise_or_do_no_harm(tmp_path, options):
    """Each time one file is truncated or one of its bits flipped. Deletion files have no checksum: see the docs."""
    index, rng = DissimilarityIndex.create(tmp_path / "index", DissimilarityHead(16), **options), random.Random(0)
    for first in (0, 40, 80):
        index.add(torch.randn(40, 16), [f"photo {n}" for n in range(first, first + 40)], {"label": range(40)})
    index.update(torch.randn(2, 16), ["photo 1", "photo 50"])
    ids = [f"photo {n}" for n in range(120)]
    expected = ids, index.get(ids).embeddings
    files = sorted(f for f in (tmp_path / "index").rglob("*") if f.is_file() and "_deletions" not in f.parts)
    raised = 0
    for _ in range(200):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "index", copy)
        file = copy / rng.choice(files).relative_to(tmp_path / "index")
        data = bytearray(file.read_bytes())
        if not data:
            continue
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        error = error_in_a_process(open_and_verify, copy, expected, options)
        assert error is None or error.startswith(("ValueError: path: ", "OSError: path: ")), (file, error)
        raised += error is not None
    assert raised > 20
