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


def start(folder):
    """A process that trains. Returns it when its first step may begin: imports before may take longer than steps."""
    process = PROCESSES.Process(target=train_in, args=(folder,))
    process.start()
    while not (folder / "config.json").exists() and process.is_alive():
        time.sleep(0.001)
    return process


def finish(folder):
    process = start(folder)
    process.join()
    assert process.exitcode == 0


def kill_after(folder, steps):
    """Train in a process and kill it (SIGKILL) after this number of logged steps, which need not be whole.

    Seconds would be no measure: other programs may slow one training more than the next."""
    process, seconds = start(folder), []
    while len(seconds) < int(steps) and process.is_alive():
        time.sleep(0.001)
        seconds = seconds_of_steps(folder)
    process.join(steps % 1 * (seconds[-1] if seconds else 0.02))
    process.kill()
    process.join()


def seconds_of_steps(folder):
    """The last column of the log, without a row that is half-written."""
    log = folder / "log.csv"
    lines = log.read_text().split("\n")[1:-1] if log.exists() else []
    return [float(line.rpartition(",")[2]) for line in lines]


def count_kills_with_other_weights(folder, kills, seed=0):
    """Kill `kills` trainings at random moments and continue each. Returns (how many ended in other weights than an
    uninterrupted one, how many were killed between their first checkpoint and their end)."""
    finish(folder / "whole")
    expected = (folder / "whole" / "model.safetensors").read_bytes()
    draw, different, during = random.Random(seed), 0, 0
    for number in range(kills):
        killed = folder / str(number)
        kill_after(killed, draw.uniform(0, CONFIG.steps + 1))
        during += (killed / "checkpoint.pt").exists() and not (killed / "model.safetensors").exists()
        finish(killed)
        different += (killed / "model.safetensors").read_bytes() != expected
    return different, during
