"""The processes of a run that torchrun or `accelerate launch` started: which one this is, and its device."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `size`; each trains on its rows of every batch, on `device`."""

    rank: int
    size: int
    device: torch.device

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch of `batch` images."""
        if batch % self.size:
            raise ValueError(
                f"identities: expected identities * views = {batch} to be a multiple of {self.size}, the number of"
                " processes. Change identities or the number of processes."
            )
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def mean(self, value: Tensor) -> float:
        """The mean of a 0-d tensor over the processes."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value.item() / self.size

    def broadcast(self, number: float) -> float:
        """The `number` of process 0."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.broadcast(value, 0)
        return value.item()


def join_processes(device: str | torch.device | None = None) -> Processes:
    """Join the other processes of this run, if a launcher started several. The backend and the device of each are
    those that accelerate chooses."""
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = PartialState(cpu=device is not None and torch.device(device).type == "cpu").device
    elif device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return Processes(rank, size, torch.device(device))
