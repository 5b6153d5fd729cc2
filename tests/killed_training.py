"""A training that is killed at a random moment and continued, for tests/test_resume.py and the stress tests."""

import random
import time

import torch
from dissim_retrieval.data import ImageSet
from dissim_retrieval.models import build_backbone
from dissim_retrieval.train import TrainConfig, train
from forked import PROCESSES
from torch import nn

CONFIG = TrainConfig(
    dim=8, steps=24, identities=6, crop=0.6, color=0.2, erase=0.5, memory=30, checkpoint_every=3, validate_every=6
)


def train_in(folder):
    """The whole training, or what is left of it: with augmentation, dropout, memory and validation."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.arange(24).repeat_interleave(3)
    pixels = torch.randint(256, (72, 3, 16, 16), dtype=torch.uint8)
    images = ImageSet(pixels, labels, torch.zeros_like(labels), [str(i) for i in range(24)], ["one"], "")
    backbone = nn.Sequential(build_backbone("small", 16), nn.Dropout(0.3), nn.Linear(16, 8))
    validation = images.take(labels >= 16)
    train(CONFIG, images.take(labels < 16), validation=validation, backbone=backbone, folder=folder, progress=False)


def run(folder, kill_after=None):
    """Train in a process, killed (SIGKILL) some seconds after its first step may begin. Returns its seconds from then
    on: imports before it may take longer than the training."""
    process = PROCESSES.Process(target=train_in, args=(folder,))
    process.start()
    while not (folder / "config.json").exists() and process.is_alive():
        time.sleep(0.001)
    start = time.perf_counter()
    process.join(kill_after)
    if kill_after is not None:
        process.kill()
        process.join()
    else:
        assert process.exitcode == 0
    return time.perf_counter() - start


def count_kills_with_other_weights(folder, kills, seed=0):
    """Kill `kills` trainings at random moments and continue each. Returns (how many ended in other weights than an
    uninterrupted one, how many were killed between their first checkpoint and their end)."""
    run(folder / "warm-up")
    duration = run(folder / "whole")
    expected = (folder / "whole" / "model.safetensors").read_bytes()
    draw, different, during = random.Random(seed), 0, 0
    for number in range(kills):
        killed = folder / str(number)
        run(killed, draw.uniform(0, duration))
        during += (killed / "checkpoint.pt").exists() and not (killed / "model.safetensors").exists()
        run(killed)
        different += (killed / "model.safetensors").read_bytes() != expected
    return different, during
