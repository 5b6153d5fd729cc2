"""Training in several processes gives the weights of one process."""

import os
import socket

import pytest
import torch
from dissim_retrieval.data import ImageSet
from dissim_retrieval.train import TrainConfig, train
from forked import run_processes
from torch import nn

CONFIGS = {
    "hinge": TrainConfig(dim=6, steps=20, identities=8, flip=0.5, erase=0.5, crop=0.7),
    "memory": TrainConfig("infonce", dim=6, steps=20, identities=8, memory=40, clip_norm=1.0),
    "triplet": TrainConfig("triplet", dim=6, steps=20, identities=8),
}


def image_set():
    labels = torch.arange(12).repeat_interleave(3)
    pixels = torch.randint(256, (36, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, labels, torch.zeros_like(labels), [str(i) for i in range(12)], ["one"], "")


def trained_weights():
    """The weights of each config, in float64, with a network that has no batch statistics."""
    weights = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Tanh(), nn.Linear(12, 6)).double()
        trained = train(config, image_set(), backbone=backbone, device="cpu", progress=False)
        weights[name] = [
            w.detach() for m in (trained.backbone, trained.head) if m is not None for w in m.parameters()
        ]
    return weights


def train_in_process(rank, size, port, folder):
    """One process of a run, with the variables that torchrun sets."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.save(trained_weights(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def expected():
    return trained_weights()


@pytest.mark.parametrize("size", [2, 4])
def test_weights_do_not_depend_on_the_number_of_processes(size, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name need not have an address
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_processes(train_in_process, (size, port, str(tmp_path)), size)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for name, weights in expected.items():
        assert weights[0].dtype == torch.float64
        for of_rank in found:
            torch.testing.assert_close(of_rank[name], weights, rtol=0, atol=1e-9)


def test_a_batch_that_processes_cannot_share_raises():
    from dissim_retrieval.train.processes import Processes

    assert Processes(1, 4, torch.device("cpu")).rows(16) == slice(4, 8)
    with pytest.raises(ValueError, match=r"identities \* views = 10 to be a multiple of 4"):
        Processes(0, 4, torch.device("cpu")).rows(10)
