"""Scorers: functions that score every pair of a query and a gallery row, larger = "same"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..arrays import ArrayLike, as_rows, check_rows_finite
from ..head import is_scored_by_weights

#: (query [n, D], reference [M, D]) -> scores [n, M], larger = "same".
Scorer = Callable[[Tensor, Tensor], Tensor]


class PairClassifier(Protocol):
    """A scorer whose scores are ``fused_dissim_score(transform(query), transform(reference), weight, bias[0])``.

    DissimilarityHead, ProjectedHead and subclasses with their forward are such scorers: `is_pair_classifier` tells.
    Their matches are ranked by `fused_dissim_rank`, which keeps no scores. Any other module is called, also one that
    has these attributes.
    """

    @property
    def weight(self) -> Tensor:
        """[D]."""

    @property
    def bias(self) -> Tensor:
        """[1]."""

    def transform(self, embeddings: Tensor) -> Tensor:
        """Embeddings -> the rows [N, D] that are scored."""

    def __call__(self, query: Tensor, reference: Tensor) -> Tensor:
        """The scores [n, M]."""


def is_pair_classifier(scorer: Any) -> TypeGuard[PairClassifier]:
    """Whether it is one, and no other module that has these attributes, such as a subclass with its own forward."""
    return is_scored_by_weights(scorer)


def check_classifier(head: object) -> None:
    """The argument `head` of functions that need its weights."""
    if not is_pair_classifier(head):
        raise TypeError(
            f"head: expected a DissimilarityHead or ProjectedHead, or a subclass with their forward, got"
            f" {type(head).__name__}."
        )


def finite_rows(name: str, embeddings: ArrayLike, classifier: PairClassifier) -> Tensor:
    """The rows [N, D] that the classifier scores, at least float32; ValueError if one is not finite."""
    rows = classifier.transform(as_rows(name, embeddings, classifier.weight))
    if rows.dim() != 2:
        raise ValueError(f"{name}: expected rows [N, D], got {list(rows.shape)}. Pass one row per image.")
    check_rows_finite(name, rows)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def negative_euclidean(query: Tensor, reference: Tensor) -> Tensor:
    """Scorer: minus the L2 distance.

    From differences: a matrix product would lose the digits of distances that are small beside the rows' norms.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)  # cdist of a CPU takes no half precision
    return -torch.cdist(query.to(dtype), reference.to(dtype), compute_mode="donot_use_mm_for_euclid_dist")


def cosine(query: Tensor, reference: Tensor) -> Tensor:
    """Scorer: cosine similarity."""
    return normalize(query, dim=-1) @ normalize(reference, dim=-1).T
