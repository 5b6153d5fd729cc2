"""A group of an experiment, and features for it that take no backbone."""

import torch

from bench.experiments.data import Features, Parts, halves
from bench.experiments.plan import Amounts, Group

AMOUNTS = Amounts(trials=3, candidates=2, splits=2, seeds=2, queries=40)
GROUP = Group("tiny", "frozen", "synthetic", "none", 8, steps=2, dim=4)


def synthetic(identities=40, cameras=2, dim=12, names=("a", "b")):
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(identities).repeat_interleave(cameras)
    rows = torch.randn(identities, dim, generator=draw)[labels] + torch.randn(len(labels), dim, generator=draw)
    return Features(rows, labels, torch.arange(cameras).repeat(identities), list(names))


def synthetic_parts(protocol=GROUP.protocol, **options):
    return Parts(*halves(synthetic(**options)), protocol, AMOUNTS)
