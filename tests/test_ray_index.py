"""Shards: every answer equals that of one index bit for bit, also after an actor was killed, or an error names it."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex, RayDissimilarityIndex
from dissim_retrieval.index.preparation import preparation_for
from dissim_retrieval.index.settings import read_settings
from dissim_retrieval.index.shard import Shard
from index_model import Model, apply_write
from ray_search import same_answers

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # processes of Ray start as forks


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 << 20,
    )
    yield
    ray.shutdown()


class InThisProcess:
    """An actor that runs in this process, because to start one takes seconds."""

    def __init__(self, shard):
        self.call = SimpleNamespace(remote=lambda *arguments: ray.put(shard.call(*map(self._value, arguments))))

    @staticmethod
    def _value(argument):
        return ray.get(argument) if isinstance(argument, ray.ObjectRef) else argument


def open_here(path, shards, quantized=False):
    settings = read_settings(path)
    options = path, settings.head.weight, preparation_for(quantized, False), 1
    actors = [InThisProcess(Shard(f"shard {n}", *options)) for n in range(shards)]
    index = RayDissimilarityIndex(path, settings, actors, None)
    index.refresh()
    return index


def new_head(dim, dtype=torch.float32, seed=0):
    head = DissimilarityHead(dim, sign="free")
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))
    return head.to(dtype)


@pytest.mark.parametrize(
    "shards, dtype, quantized",
    [
        (1, "float64", False),
        (2, "float16", False),
        (3, "float32", True),
        (8, "bfloat16", False),
        (8, "float32", False),
    ],
)
def test_shards_equal_one_index(tmp_path, shards, dtype, quantized):
    rng, model = np.random.default_rng(shards), Model(7, ids=[str, int][shards % 2])
    writer = DissimilarityIndex.create(tmp_path / "index", new_head(7, getattr(torch, dtype)))
    single = DissimilarityIndex.open(tmp_path / "index", quantized=quantized)
    index = open_here(tmp_path / "index", shards, quantized)
    assert len(index) == index.version == 0 and index.search(torch.randn(2, 7), 3).ids.tolist() == [[-1] * 3] * 2
    for _ in range(3):
        for _ in range(6):
            write = model.draw(rng, max_rows=30)
            apply_write(writer, write)
            model.apply(write)
        single.refresh(), index.refresh()
        assert index.version == single.version == writer.version and len(index) == len(single)
        same_answers(index, single, rng, searches=2)


def test_shards_take_fragments_of_the_same_number_of_rows_and_keep_them(tmp_path):
    writer = DissimilarityIndex.create(tmp_path / "index", new_head(4))
    for count in (50, 10, 20, 30):
        writer.add(torch.randn(count, 4))
    index = open_here(tmp_path / "index", 2)
    before = [set(share.fragments) for share in index._state.shares]
    assert before == [{0, 1}, {2, 3}]
    writer.add(torch.randn(9, 4))
    writer.add(torch.randn(1, 4))
    writer.remove([0])
    index.refresh()
    after = [set(share.fragments) for share in index._state.shares]
    assert after == [{0, 1, 5}, {2, 3, 4}] and len(index) == 119


def test_searches_of_the_version_before_are_answered_during_refresh(tmp_path):
    writer = DissimilarityIndex.create(tmp_path / "index", new_head(4))
    writer.add(torch.randn(20, 4))
    index, query = open_here(tmp_path / "index", 2), torch.randn(3, 4)
    before, expected = index._state, index.search(query, 5)
    writer.update(torch.randn(20, 4), range(20))
    writer.optimize()
    index.refresh()
    assert not torch.equal(index.search(query, 5).scores, expected.scores)
    index._state = before
    assert torch.equal(index.search(query, 5).scores, expected.scores)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The folder of an index, and two actors with its rows."""
    path = tmp_path_factory.mktemp("ray") / "index"
    rng, model, writer = np.random.default_rng(0), Model(9), DissimilarityIndex.create(path, new_head(9))
    for _ in range(12):
        write = model.draw(rng, max_rows=30)
        apply_write(writer, write)
        model.apply(write)
    index = RayDissimilarityIndex.open(path, shards=2, num_cpus=0.5, timeout=60)
    yield path, index
    index.close()
    with pytest.raises(RuntimeError, match="index: expected an open index"):
        index.search(torch.randn(1, 9), 1)


def kill(index, number):
    actor = index._actors[number].__ray_call__
    os.kill(ray.get(actor.remote(lambda shard: os.getpid())), signal.SIGKILL)


def test_actors_equal_one_index_also_after_one_was_killed(started):
    path, index = started
    writer, rng = DissimilarityIndex.open(path), np.random.default_rng(1)
    same_answers(index, writer, rng)
    writer.add(torch.randn(5, 9), ["a", "b", "c", "d", "e"])
    assert index.version < writer.version
    index.refresh()
    kill(index, 1)
    same_answers(index, writer, rng)


def test_a_shard_that_cannot_read_its_files_is_named(started):
    path, index = started
    away = path.with_name("away")
    kill(index, 0)
    path.rename(away)
    try:
        with pytest.raises(OSError, match=r"shards: shard 1 of 2 cannot answer, on node [\d.]+: path: "):
            index.search(torch.randn(1, 9), 1)
    finally:
        away.rename(path)
    same_answers(index, DissimilarityIndex.open(path), np.random.default_rng(2))


def test_errors_of_the_arguments_are_those_of_one_index(started):
    path, index = started
    query, single = torch.randn(2, 9), DissimilarityIndex.open(path)
    for call in (
        lambda index: index.search(query, 0),
        lambda index: index.search(query[:, :3], 1),
        lambda index: index.search(query, 1, filter="colr = 3"),
        lambda index: index.range_search(query, float("nan")),
        lambda index: index.search(query, 1, filter=[1, 2]),
        lambda index: index.search(query, 1, group_by="colr"),
        lambda index: index.search(query, 1, group_by="color", fuse="sum"),
        lambda index: index.ranks(query, [0, 1, 1], ["no such id"]),
        lambda index: index.ranks(query, [0, 2, 1], ["a"]),
    ):
        with pytest.raises((ValueError, KeyError)) as expected:
            call(single)
        with pytest.raises(expected.type) as got:
            call(index)
        assert str(got.value) == str(expected.value)


def test_errors_of_open(tmp_path, monkeypatch):
    DissimilarityIndex.create(tmp_path / "index", new_head(4)).add(torch.randn(3, 4))
    for options, message in (
        ({"shards": 0}, "shards: expected an integer of at least 1, got 0"),
        ({"shards": 3}, "shards: expected at most 2 with num_cpus=1, because Ray has 2 cores, got 3"),
        ({"shards": 1, "num_cpus": 0}, "num_cpus: expected a number above 0"),
        ({"shards": 1, "timeout": 0}, "timeout: expected seconds above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            RayDissimilarityIndex.open(tmp_path / "index", **options)
    with pytest.raises(FileNotFoundError, match="path: expected a folder"):
        RayDissimilarityIndex.open(tmp_path / "none", shards=1)
    with pytest.raises(TimeoutError, match=r"expected all answers in 0.01 s, got none of shard 1 of 1\. Raise"):
        RayDissimilarityIndex.open(tmp_path / "index", shards=1, timeout=0.01)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[ray\]'"):
        RayDissimilarityIndex.open(tmp_path / "index", shards=1)


def test_an_index_that_was_replaced_raises_at_a_refresh(tmp_path):
    for name in ("index", "other"):
        DissimilarityIndex.create(tmp_path / name, new_head(4)).add(torch.randn(3, 4))
    index = open_here(tmp_path / "index", 1)
    (tmp_path / "index").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "index")
    with pytest.raises(OSError, match="was replaced by another index"):
        index.refresh()


def test_another_index_at_the_same_path_raises(tmp_path):
    for name in ("index", "other"):
        DissimilarityIndex.create(tmp_path / name, new_head(4)).add(torch.randn(3, 4))
    index = open_here(tmp_path / "index", 1)
    other = InThisProcess(Shard("shard 1 of 1", tmp_path / "other", torch.ones(4), None, 1))
    index._actors = [other]
    with pytest.raises(OSError, match=r"shard 1 of 1 cannot answer, on node .* is another index here"):
        index.search(torch.randn(1, 4), 1)
