"""The projection of `fit_head`, which a gallery of `dissim fit` stores in the place of a network."""

from __future__ import annotations

from torch import Tensor

from .gallery import DissimilarityIndex

#: Its name, in the place of that of a network: tensors mean [D] and projection [D, dim].
PROJECTION = "projection"


def stored_projection(index: DissimilarityIndex) -> tuple[Tensor, Tensor] | None:
    """mean [D] and projection [D, dim] of a gallery that `fitted_gallery` made; None for one of another kind.

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
    return weights.state["mean"], weights.state["projection"]
