"""Query expansion: each query is averaged with its nearest gallery rows."""

from __future__ import annotations

import torch
from torch import Tensor

from dissim_kernels import fused_dissim_topk

from ..arrays import ArrayLike, as_indices
from ..head import DissimilarityHead
from .scorers import finite_rows

#: Queries that are expanded together.
QUERIES = 1 << 10


@torch.no_grad()
def expand_queries(
    query: ArrayLike,
    gallery: ArrayLike,
    head: DissimilarityHead,
    *,
    k: int = 5,
    alpha: float = 3.0,
    exclude_index: ArrayLike | None = None,
) -> Tensor:
    """Each query's weighted mean with its k best gallery rows, [N, D]: queries for the same head.

    ``(q + sum(a_i**alpha * r_i)) / (1 + sum(a_i**alpha))``, where q and r_i are the rows that the head scores
    (``head.transform``). With alpha = 0 it is average query expansion (Chum et al., ICCV 2007); a larger alpha gives
    less similar rows less weight (alpha query expansion: Radenovic et al., TPAMI 2019, who use 3 and cosines).
    A score is not a cosine, so the similarity is defined as a_i = (s_i - lowest) / (highest - lowest), from 0 to 1:
    lowest is the query's lowest score in the gallery, highest its best one or the bias, whichever is larger. It is 1
    if all are equal.

    Args:
        query: [N, D]; gallery: [M, D]; finite.
        head: a DissimilarityHead. With a ProjectedHead, pass its head and the projected rows.
        k: gallery rows, 1 to M, for each query.
        exclude_index: int64 [N], a gallery row that is not used (the query itself), -1 for none. So
            ``expand_queries(gallery, gallery, head, exclude_index=torch.arange(M))`` is database-side augmentation.

    Cost: two scans of all pairs. Memory: the transformed rows, lists of k and the result.
    Raises ValueError or TypeError if an argument is not valid.
    """
    if not isinstance(head, DissimilarityHead):
        raise TypeError(
            f"head: expected a DissimilarityHead, got {type(head).__name__}. With a ProjectedHead, pass fitted.head"
            " and fitted.project(embeddings)."
        )
    if k < 1:
        raise ValueError(f"k: expected at least 1 gallery row, got {k}.")
    if not alpha >= 0:
        raise ValueError(f"alpha: expected 0 or more, got {alpha}. 0 weights all rows equally.")
    query, gallery = (finite_rows(name, rows, head) for name, rows in (("query", query), ("gallery", gallery)))
    excluded = None if exclude_index is None else as_indices("exclude_index", exclude_index).to(query.device)
    weight, bias = head.weight.to(query.dtype), head.bias[0].to(query.dtype)
    near = fused_dissim_topk(query, gallery, weight, bias, k=k, exclude_index=excluded)
    far = fused_dissim_topk(query, gallery, weight, bias, k=1, largest=False, exclude_index=excluded)
    highest = near.scores[:, :1].maximum(bias)
    spread = highest - far.scores
    similarity = torch.where(spread > 0, (near.scores - far.scores) / spread, 1)
    weights = similarity.pow(alpha)
    parts = [
        torch.einsum("nk,nkd->nd", w, gallery[rows])
        for w, rows in zip(weights.split(QUERIES), near.indices.split(QUERIES), strict=True)
    ]
    return (query + torch.cat(parts)) / (1 + weights.sum(1, keepdim=True))
