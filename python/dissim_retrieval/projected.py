"""ProjectedHead: a linear projection of given embeddings and the pair classifier on the projected ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .arrays import ArrayLike, as_rows
from .atomic import atomic_write
from .head import DissimilarityHead, check_storable, scores_transformed_rows
from .held_out import Comparison, HeldOutCheck
from .provenance import as_provenance

_FORMAT = "dissim-projected-head 2"


class ProjectedHead(nn.Module):
    """Scores of embeddings made elsewhere: ``head(project(query), project(reference))``, larger means "same".

    `fit_head` makes one. It maps query [n, D] and reference [M, D] to scores [n, M], so it is a scorer for
    `retrieval_metrics`. An index stores the projected rows: ``DissimilarityIndex(fitted.head)`` and
    ``index.add(fitted.project(embeddings), ids)``. NumPy arrays and lists are converted to its dtype and device.

    Attributes:
        mean: [D]; projection: [D, dim]; ``project(x)`` is ``(x - mean) @ projection``.
        head: the DissimilarityHead of `dim` dimensions.
        check: what `fit_head` measured on identities that it held out, or None.
        provenance: where the fitted embeddings come from, as in ``Trained.provenance`` (JSON). Empty if not known.
    """

    def __init__(
        self, mean: Tensor, projection: Tensor, head: DissimilarityHead, check: HeldOutCheck | None = None
    ) -> None:
        super().__init__()
        for name, found, expected in (
            ("projection", projection, "[D, dim]" if projection.dim() != 2 else list(projection.shape)),
            ("mean", mean, list(projection.shape[:1])),
            ("head.weight", head.weight, list(projection.shape[1:])),
        ):
            if list(found.shape) != expected:
                raise ValueError(f"{name}: expected shape {expected}, got {list(found.shape)}. See ProjectedHead.")
        self.mean: Tensor
        self.register_buffer("mean", mean)
        self.projection = nn.Parameter(projection)
        self.head, self.check = head, check
        self.provenance: dict[str, Any] = {}

    def project(self, embeddings: ArrayLike) -> Tensor:
        """Embeddings [N, D] -> rows [N, dim], for the head or an index."""
        rows = as_rows("embeddings", embeddings, self.mean)
        if rows.dim() != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(
                f"embeddings: expected [N, {len(self.mean)}], as the projection was fitted, got {list(rows.shape)}."
            )
        return (rows.to(self.mean.dtype) - self.mean) @ self.projection

    @property
    def weight(self) -> Tensor:
        """The weights of the head, [dim]."""
        return self.head.weight

    @property
    def bias(self) -> Tensor:
        """The bias of the head, [1]."""
        return self.head.bias

    def transform(self, embeddings: ArrayLike) -> Tensor:
        """Embeddings [N, D] -> the rows [N, dim] that are scored by `weight` and `bias`."""
        return self.head.transform(self.project(embeddings))

    @scores_transformed_rows
    def forward(self, query: ArrayLike, reference: ArrayLike) -> Tensor:
        return self.head(self.project(query), self.project(reference))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically: the tensors, and options, check and provenance as JSON."""
        check_storable("head", self.head)
        check = None if self.check is None else asdict(self.check)
        facts = {"head": self.head.options(), "check": check, "provenance": as_provenance(self.provenance)}
        metadata = {"format": _FORMAT} | {name: json.dumps(value) for name, value in facts.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic_write(path) as file:
            file.write(save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> ProjectedHead:
        """Read what `save` wrote. Only tensors and JSON are read from the file, never code."""
        expected = f"path: expected a file written by ProjectedHead.save, got {path}"
        if Path(path).is_dir():
            raise ValueError(f"{expected}, a folder. Pass the file, or use load_trained for a training run.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        except SafetensorError as error:
            raise ValueError(f"{expected}, which is damaged or of another kind: {error}.") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{expected} of format {metadata.get('format')!r} instead of {_FORMAT!r}.")
        try:
            facts = {name: json.loads(metadata[name]) for name in ("head", "check", "provenance")}
            head = DissimilarityHead(len(tensors["head.weight"]), **facts["head"])
            fitted = cls(tensors["mean"], tensors["projection"], head, _read_check(facts["check"]))
            fitted.load_state_dict(tensors)
            fitted.provenance = as_provenance(facts["provenance"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise ValueError(f"{expected}, which is damaged: {reason.rstrip('.')}. Fit and save it again.") from error
        return fitted.to(device).eval().requires_grad_(False)


def _read_check(check: dict | None) -> HeldOutCheck | None:
    if check is None:
        return None
    return HeldOutCheck(**{**check, "baselines": {k: Comparison(**v) for k, v in check["baselines"].items()}})
