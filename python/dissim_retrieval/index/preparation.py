"""What a search can prepare of the rows of a segment, so that it computes fewer scores: 8-bit codes or clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from dissim_kernels import ClusteredReferences, QuantizedReferences, cluster_references, quantize_references


class Preparation(NamedTuple):
    """A function of rows and weights, and the argument of `fused_dissim_topk` that takes its result."""

    argument: str
    option: str  #: of DissimilarityIndex
    folder: str  #: of its files
    make: Callable[[Tensor, Tensor], Any]
    result: Any  #: what it returns: a named tuple of tensors and, last, the number of rows
    min_rows: int  #: smaller segments are searched without


CODES = Preparation("quantized", "quantized", "codes", quantize_references, QuantizedReferences, 1)
CLUSTERS = Preparation("clusters", "clustered", "clusters", cluster_references, ClusteredReferences, 10_000)
PREPARATIONS = (CODES, CLUSTERS)


def preparation_for(quantized: bool, clustered: bool) -> Preparation | None:
    """That of an index with these options."""
    if quantized and clustered:
        raise ValueError("clustered: expected False with quantized=True, got both. A search uses one of them.")
    return CODES if quantized else CLUSTERS if clustered else None
