"""DissimilarityIndex: exact search in a gallery with the score that the head was trained with."""

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
    """An exact index: a search scores every stored row for every query and keeps the k best.

    It stores head.transform(embeddings) in the head's dtype, so its scores are those of ``head(query, gallery)``.
    You choose the ids, int64; several rows may have the same id (views of one object).

    Args:
        quantized: store 8-bit codes of the rows as well (one byte per value, created by the first search). A search
            then scans the codes and computes exact scores only for rows that the error bounds of the codes cannot
            exclude. The result is the same; it is several times as fast if few rows score close to the best
            (`dissim_kernels.quantize_references`). For a head on the CPU or CUDA.

    Memory: the rows, [M, D]. A search computes N M D terms ``|q_d - r_d|`` and stores no N x M matrix.
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
                f"ids: expected int64 [{len(embeddings)}], one per row, got {ids.dtype} {list(ids.shape)}. "
                "Keep names in a list and pass their positions."
            )
        self._codes = None
        self._rows.append(self._transform(embeddings).clone())
        self._ids.append(ids.clone())

    @torch.no_grad()
    def search(self, query: Tensor, k: int) -> SearchResult:
        """The k best rows for each query embedding [N, D]. Ties are in the order in which the rows were added.

        Plain torch: ``scores, rows = head(query, gallery).topk(k); ids = ids[rows]``.
        """
        self._check("query", query)
        if not 1 <= k <= len(self):
            raise ValueError(
                f"k: expected 1 to {len(self)}, the rows of the index, got {k}. Use a smaller k, or add rows."
            )
        rows, ids = self._consolidated()
        problem = self._transform(query), rows, self.head.weight, self.head.bias[0]
        codes = self._quantized_rows(rows) if self.quantized else None
        best = fused_dissim_topk(*problem, k=k, quantized=codes)
        return SearchResult(best.scores, ids[best.indices])

    def save(self, path: str | Path) -> None:
        """Write head, rows and ids into one file, atomically."""
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
        """Read an index that `save` wrote. Only tensors and numbers are read from the file, never code.

        On the CPU the rows are memory-mapped: they stay in the file and are read when a search uses them.
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
                f"{name}: expected embeddings [rows, {dim}] as in the head's weight, got {list(embeddings.shape)}."
            )
        if not embeddings.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or Inf. A search could not rank such a row.")
