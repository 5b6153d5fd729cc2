"""What a loss compares the rows of a batch with: the batch itself, that of all processes, or also remembered rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class References:
    """The reference rows for the batch of this process.

    `gather_references` makes one from the batches of all processes, and `CrossBatchMemory.extend` adds remembered
    rows. Without either, a loss uses ``References(embeddings, labels)``: the batch itself.
    """

    embeddings: Tensor
    """[B, D]: the batch of all processes in rank order, with gradient."""
    labels: Tensor
    """int64 [B]."""
    first_row: int = 0
    """The row of `embeddings` that is the first row of this process."""
    memory: Tensor | None = None
    """[R, D]: remembered rows, which are no part of the batch and get no gradient."""
    memory_labels: Tensor | None = None
    """int64 [R]."""

    def __post_init__(self) -> None:
        dim = self.embeddings.shape[-1]
        parts = {"embeddings": (self.embeddings, self.labels)}
        if self.memory is not None or self.memory_labels is not None:
            if self.memory is None or self.memory_labels is None:
                raise ValueError(
                    "memory_labels: expected both memory and memory_labels, or neither, got one of them."
                )
            parts["memory"] = self.memory, self.memory_labels
        for name, (rows, labels) in parts.items():
            if rows.dim() != 2 or rows.shape[1] != dim or labels.shape != rows.shape[:1]:
                raise ValueError(
                    f"{name}: expected rows [B, {dim}] with labels [B], got {list(rows.shape)} with labels "
                    f"{list(labels.shape)}."
                )

    @property
    def all_labels(self) -> Tensor:
        """Labels of all M = B + R reference rows: those of the batch, then those of the memory."""
        return self.labels if self.memory_labels is None else torch.cat([self.labels, self.memory_labels])

    def own_rows(self, count: int) -> Tensor:
        """int64 [count]: the reference row that is each of this process's `count` rows itself."""
        if self.first_row < 0 or self.first_row + count > len(self.labels):
            raise ValueError(
                f"references: expected the batch's {count} rows among their {len(self.labels)}, from row "
                f"{self.first_row}. Make them with gather_references from the same batch."
            )
        if len(self.labels) % max(1, count):
            raise ValueError(
                f"references: expected a multiple of the batch's {count} rows, which each process has, got "
                f"{len(self.labels)}. Make them with gather_references from the same batch; other rows are memory."
            )
        return torch.arange(self.first_row, self.first_row + count, device=self.labels.device)

    def positive_counts(self) -> Tensor:
        """int64 [B]: for each row of the batch of all processes, how many other reference rows have its label."""
        return count_equal(self.labels, self.all_labels) - 1


def count_equal(values: Tensor, among: Tensor) -> Tensor:
    """How many entries of `among` [M] equal each entry of `values` [N]: int64 [N], without an N x M tensor."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, values, right=True) - torch.searchsorted(ordered, values)


def positive_pairs(labels: Tensor, reference_labels: Tensor, own_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Row and reference row of each pair of equal labels, without a row's pair with itself: int64 [P] each.

    In the order of the rows. Memory: the pairs, not N x M.
    """
    ordered, order = reference_labels.sort(stable=True)
    first = torch.searchsorted(ordered, labels)
    count = torch.searchsorted(ordered, labels, right=True) - first
    row = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), count)
    place = torch.arange(len(row), device=labels.device) - (count.cumsum(0) - count)[row]
    reference = order[first[row] + place]
    other = reference != own_rows[row]
    return row[other], reference[other]
