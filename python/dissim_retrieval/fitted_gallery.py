"""A gallery of embeddings made elsewhere: an index that knows the projection that `fit_head` learned."""

from __future__ import annotations

from .index import BackboneWeights, DissimilarityIndex
from .index.settings import PROJECTION
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
    if "fit" not in (index.provenance or {}):
        return None
    weights = index.backbone
    if weights is None or weights.name != PROJECTION:
        return None
    shapes = {name: list(value.shape) for name, value in weights.state.items()}
    width = shapes.get("mean", [])
    if len(width) != 1 or shapes.get("projection") != [*width, len(index.head.weight)]:
        raise ValueError(
            f"gallery: expected mean [D] and projection [D, {len(index.head.weight)}], as `dissim index` stores them,"
            f" got {shapes}. Make the gallery again with the file of `dissim fit`."
        )
    fitted = ProjectedHead(weights.state["mean"], weights.state["projection"], index.head)
    return fitted.to(index.head.weight.device).requires_grad_(False)
