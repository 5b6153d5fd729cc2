"""Shards as processes: 1 to 8 of them equal one index, and a minute of searches while random ones are killed."""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex, RayDissimilarityIndex

sys.path.append(str(Path(__file__).parents[1]))
from ray_search import same_answers

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("ray") / "index"
    head = DissimilarityHead(32, sign="free")
    torch.nn.init.normal_(head.weight)
    writer = DissimilarityIndex.create(path, head)
    for count in (3000, 1, 500, 2000, 100, 100, 1000, 3, 400):
        rows = torch.randn(count, 32)
        rows = rows[torch.randint(count, (count,))]  # equal scores
        writer.add(rows, metadata={"color": [("red", "green", None)[n % 3] for n in range(count)]})
    writer.update(torch.randn(50, 32), range(0, 5000, 100))
    writer.remove(range(7, 3000, 11))
    return path


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_shards_equal_one_index(path, shards):
    index = RayDissimilarityIndex.open(path, shards=shards, num_cpus=0.5)
    same_answers(index, DissimilarityIndex.open(path), np.random.default_rng(shards), searches=20)
    index.close()


def test_searches_are_complete_while_actors_are_killed(path):
    index, single = RayDissimilarityIndex.open(path, shards=3), DissimilarityIndex.open(path)
    kills, choose, end = [0, 0], random.Random(0), time.monotonic() + 60

    def kill_actors():
        while time.monotonic() < end:
            time.sleep(choose.uniform(0, 3))
            actor = choose.choice(index._actors)
            process = ray.get(actor.__ray_call__.remote(lambda shard: os.getpid()))  # waits until it is there again
            how = sum(kills) % 2
            os.kill(process, signal.SIGKILL) if how else ray.kill(actor, no_restart=False)
            kills[how] += 1

    killer, searches, rng = threading.Thread(target=kill_actors, daemon=True), 0, np.random.default_rng(0)
    killer.start()
    while killer.is_alive():
        same_answers(index, single, rng, searches=1)
        searches += 1
    index.close()
    print(f"{kills[0]} + {kills[1]} kills during {searches} rounds of searches")
    assert min(kills) >= 1 and searches >= 2
