"""DissimilarityIndex: a gallery searched by the very score the head was trained with."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dissim_kernels import QuantizedReferences, fused_dissim_topk, quantize_references

from .atomic import atomic_write
from .head import DissimilarityHead

_FORMAT = "dissim-index 1"
_OPTIONS = [p.name for p in inspect.signature(DissimilarityHead).parameters.values() if p.kind is p.KEYWORD_ONLY]


class SearchResult(NamedTuple):
    """scores [N, k] and ids int64 [N, k], best first."""

    scores: Tensor
    ids: Tensor


class DissimilarityIndex:
    """An exact index: every stored row is scored for every query, only the k best are kept.

    It stores head.transform(embeddings) in the head's dtype, so its scores are those of ``head(query, gallery)``.
    Ids are the caller's, int64; several rows may share one (views of one object).

    Args:
        quantized: search by a scan over one more byte per value, made at the first search, and exact scores for the
            rows that its error bounds cannot rule out: the same result, several times as fast where few rows are
            near a query (`dissim_kernels.quantize_references`). For a head on the CPU or CUDA.

    Memory: the rows, [M, D]. Searching: N * M * D element steps and no N x M matrix.
    """

    def __init__(self, head: DissimilarityHead, *, quantized: bool = False) -> None:
        self.head, self.quantized = head, quantized
        self._codes: QuantizedReferences | None = None
        self._rows = [head.weight.detach().new_empty(0, len(head.weight))]
        self._ids = [torch.empty(0, dtype=torch.int64, device=head.weight.device)]

    def __len__(self) -> int:
        return sum(map(len, self._ids))

    @torch.no_grad()
    def add(self, embeddings: Tensor, ids: Tensor) -> None:
        """Append embeddings [B, D] with their ids int64 [B], on the head's device."""
        self._check("embeddings", embeddings)
        if ids.dtype != torch.int64 or ids.shape != (len(embeddings),):
            raise ValueError(
                f"ids: expected int64 [{len(embeddings)}], one a row, got {ids.dtype} {list(ids.shape)}. "
                "Keep names in a list and pass their positions."
            )
        self._codes = None
        self._rows.append(self._transform(embeddings).clone())
        self._ids.append(ids.clone())

    @torch.no_grad()
    def search(self, query: Tensor, k: int) -> SearchResult:
        """The k best rows of each query embedding [N, D], equal scores by order of adding.

        Plain torch: ``scores, rows = head(query, gallery).topk(k); ids = ids[rows]``.
        """
        self._check("query", query)
        if not 1 <= k <= len(self):
            raise ValueError(
                f"k: expected 1 to {len(self)}, the rows of the index, got {k}. Ask for fewer, or add rows."
            )
        rows, ids = self._consolidated()
        problem = self._transform(query), rows, self.head.weight, self.head.bias[0]
        codes = self._quantized_rows(rows) if self.quantized else None
        best = fused_dissim_topk(*problem, k=k, quantized=codes)
        return SearchResult(best.scores, ids[best.indices])

    def save(self, path: str | Path) -> None:
        """Write head and rows into one file, whole or not at all."""
        rows, ids = self._consolidated()
        record = {
            "format": _FORMAT,
            "options": {name: getattr(self.head, name) for name in _OPTIONS},
            "state": self.head.state_dict(),
            "rows": rows,
            "ids": ids,
        }
        with atomic_write(path) as file:
            torch.save(record, file)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | torch.device = "cpu", quantized: bool = False
    ) -> DissimilarityIndex:
        """The index that `save` wrote. Only tensors and numbers are read from the file, never code.

        On the CPU the rows stay in the file and are read when a search touches them (memory map).
        """
        expected = f"path: expected a file written by DissimilarityIndex.save, got {path}."
        try:
            record = torch.load(path, map_location=device, weights_only=True, mmap=True)
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(expected) from error
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise ValueError(expected)
        weight = record["state"]["weight"]
        head = DissimilarityHead(len(weight), **record["options"]).to(weight)
        head.load_state_dict(record["state"])
        index = cls(head, quantized=quantized)
        index._rows, index._ids = [record["rows"]], [record["ids"]]
        return index

    def _consolidated(self) -> tuple[Tensor, Tensor]:
        if len(self._rows) > 1:
            self._rows, self._ids = [torch.cat(self._rows)], [torch.cat(self._ids)]
        return self._rows[0], self._ids[0]

    def _quantized_rows(self, rows: Tensor) -> QuantizedReferences:
        weight = self.head.weight.detach()
        if self._codes is None or not torch.equal(self._codes.weight, weight.to(self._codes.weight.dtype)):
            self._codes = quantize_references(rows, weight)
        return self._codes

    def _transform(self, embeddings: Tensor) -> Tensor:
        return self.head.transform(embeddings.to(self.head.weight.dtype))

    def _check(self, name: str, embeddings: Tensor) -> None:
        dim = len(self.head.weight)
        if embeddings.dim() != 2 or embeddings.shape[1] != dim:
            raise ValueError(
                f"{name}: expected embeddings [rows, {dim}] as the head's weight, got {list(embeddings.shape)}."
            )
        if not embeddings.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or Inf. Such a row could never be found.")
