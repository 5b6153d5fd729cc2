"""CrossBatchMemory: embeddings of recent batches as further references of the loss."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .references import References


class CrossBatchMemory(nn.Module):
    """The last `size` embeddings and their labels (cross-batch memory, Wang et al., CVPR 2020, arXiv 1912.06798).

    The backbone changes slowly, so embeddings of recent steps are nearly what it would give now. As references they
    add many negatives, and only their scores have to be computed: no image is embedded again. In each step::

        references = memory.extend(gather_references(embeddings, labels))
        loss(embeddings, labels, references).backward()
        memory.add(references)

    With several processes the memory of each holds the batches of all, in rank order, so the memories are identical.
    Early steps change the backbone much. So `add` from the first step, but `extend` only when the loss has dropped
    (in the paper, after some hundred steps).

    Rows and labels are buffers: ``.to(device)`` moves them, and ``state_dict()`` contains them and the position.
    Memory: size * dim values, and for the loss and its gradient about four times that.

    Args:
        size: the number of rows that are kept; the oldest are replaced first.
        dim: length of an embedding.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}.")
        self.rows: Tensor
        self.labels: Tensor
        self.register_buffer("rows", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self._added = 0  # rows added so far; no tensor, which a GPU would have to be waited for

    def __len__(self) -> int:
        """The number of rows that are remembered now."""
        return min(self._added, len(self.rows))

    def extend(self, references: References) -> References:
        """`references` with the remembered rows. The loss reads these rows, so call `add` after it."""
        count = len(self)
        return replace(references, memory=self.rows[:count], memory_labels=self.labels[:count])

    @torch.no_grad()
    def add(self, references: References) -> None:
        """Remember the batch of `references`, without its memory and without gradient."""
        size, dim = self.rows.shape
        embeddings, labels = references.embeddings, references.labels
        if embeddings.shape[1] != dim:
            raise ValueError(f"references: expected embeddings [B, {dim}], got {list(embeddings.shape)}.")
        end = self._added + len(labels)
        place = torch.arange(max(self._added, end - size), end, device=self.rows.device) % size
        self.rows[place] = embeddings[-size:].to(self.rows)
        self.labels[place] = labels[-size:].to(self.labels)
        self._added = end

    def get_extra_state(self) -> Tensor:
        """The number of rows added so far, for `state_dict()`."""
        return torch.tensor(self._added)

    def set_extra_state(self, state: Tensor) -> None:
        """Read by `load_state_dict`."""
        self._added = int(state)
