"""A gallery of embeddings made elsewhere: an index that knows the projection that `fit_head` learned."""

from __future__ import annotations

from .index import BackboneWeights, DissimilarityIndex
from .index.projection import PROJECTION, stored_projection
from .projected import ProjectedHead
from .provenance import weights_digest


def fitted_gallery(fitted: ProjectedHead) -> DissimilarityIndex:
    """An empty gallery for ``fitted.project(embeddings)``, in memory on the CPU. It stores the projection, too.

    Its provenance is that of the fitted embeddings, with the digest of `fitted` as "fit".
    """
    weights = BackboneWeights(PROJECTION, {"mean": fitted.mean, "projection": fitted.projection})
    return DissimilarityIndex(
        fitted.head, provenance=fitted.provenance | {"fit": weights_digest(fitted=fitted)}, backbone=weights
    )


def fitted_head(index: DissimilarityIndex) -> ProjectedHead | None:
    """The projection and the head of a gallery that `fitted_gallery` made; None for one of another kind.

    Raises ValueError for a projection that does not fit the head.
    """
    stored = stored_projection(index)
    if stored is None:
        return None
    return ProjectedHead(*stored, index.head).to(index.head.weight.device).requires_grad_(False)
