"""Clusters of references with bounds (E17): the public function, its result type and their checks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import ACCUMULATE, Problem, check_count, check_reference_inputs, raise_argument_error, shape
from ..dispatch import resolve
from .arguments import autocast_to_float32
from .quantize import MAX_DIMENSIONS, check_field, same_weights

#: The default number of clusters is this times the root of M, and at most MAX_CLUSTERS.
CLUSTERS_PER_ROOT, MAX_CLUSTERS = 4, 2**16
#: How to fix clusters that do not match the call.
REMEDY = "Create them again with cluster_references(reference, weight)."


class ClusteredReferences(NamedTuple):
    """References in clusters, the result of `cluster_references`.

    torch.save stores it; torch.load reads it if dissim_kernels is imported.

    The references of cluster c are order[offsets[c] : offsets[c + 1]], with descending radii.

    A search checks types, shapes, devices, `offsets`, `weight` and `rows`. It also checks that every score it
    computes is within the bounds of the clusters. So it raises if a score is outside the bounds, which happens with
    clusters of other references, or after the references have changed. It does not check references that it does not
    score, because that would take as long as some searches. So if `order` repeats references or `radii` are too
    small, the result may miss references, or the search raises that there are too few candidates.
    """

    pivots: Tensor  #: [C, D] in the dtype of the references: a point near the references of each cluster
    order: Tensor  #: int64 [M]: the references, cluster by cluster
    offsets: Tensor  #: int64 [C + 1]: where each cluster begins in `order`, and M
    radii: Tensor  #: float64 [M], in that order: bound on how far a score is from that of the pivot (E17)
    center: Tensor  #: [D] in the accumulator dtype: the median of the pivots
    weight: Tensor  #: [D] in the accumulator dtype: the weights they were made for
    rows: int  #: M


torch.serialization.add_safe_globals([ClusteredReferences])


def cluster_references(
    reference: Tensor, weight: Tensor, *, num_clusters: int | None = None, seed: int = 0
) -> ClusteredReferences:
    """Prepares references for `fused_dissim_topk(..., clusters=)`: clusters, and for each row a bound of its score.

    Plain torch, for pivots chosen from a sample of rows::

        cluster = torch.cdist(reference * weight.abs(), pivots * weight.abs(), p=1).argmin(1)
        radius = (weight.abs() * (reference - pivots[cluster]).abs()).sum(1)

    reference [M, D] and weight [D], dtypes as in `fused_dissim_score`, any strides; D < 2**19. The score of a row
    differs from that of its pivot by at most its radius, for weights of any signs; the stored radius includes the
    rounding errors. Rows with NaN, Inf or values whose differences might overflow have no bound and are scored in
    every search. The clusters are valid for these references and weights only, and a search still needs the
    references. Not differentiable.

    Args:
        num_clusters: the largest number of clusters; None: 4 sqrt(M), at most 65536. More clusters have smaller
            radii, but a search scores all pivots.
        seed: seed of the random choice of the pivots. The same seed gives the same clusters in one version and on one
            machine.

    Cost: that of the scores of M rows by the pivots, twice that for a sample of 20 rows per cluster, and some passes
    over the references. Memory: 2 M + C numbers of 8 bytes, the pivots, and the sample. Errors name `reference`,
    `weight`, `num_clusters` or `seed`, as in `fused_dissim_score`.

    >>> import torch
    >>> clusters = cluster_references(torch.randn(100, 6), torch.ones(6), num_clusters=5)
    >>> clusters.pivots.shape, clusters.offsets[-1]
    (torch.Size([5, 6]), tensor(100))
    """
    reference, weight = autocast_to_float32(reference, weight)
    check_reference_inputs(reference, weight)
    check_sizes(reference)
    rows = reference.shape[0]
    if num_clusters is None:
        num_clusters = max(1, min(MAX_CLUSTERS, round(CLUSTERS_PER_ROOT * math.sqrt(rows))))
    check_count("num_clusters", num_clusters, 1)
    check_count("seed", seed, 0)
    module = resolve("auto", Problem("topk", reference.device))
    count = min(num_clusters, rows)
    tensors = module.cluster_references(reference.detach(), weight.detach(), count, seed)
    return ClusteredReferences._make([*tensors, rows])


def check_sizes(reference: Tensor) -> None:
    if reference.shape[1] >= MAX_DIMENSIONS:
        remedy = "Use fused_dissim_topk without clusters."
        raise_argument_error("reference", f"fewer than {MAX_DIMENSIONS} columns", shape(reference), remedy)


def check_clusters(clusters: object, reference: Tensor) -> None:
    """Checks types, dtypes, shapes and devices. The functions below check values."""
    if not isinstance(clusters, ClusteredReferences):
        remedy = "Create them with cluster_references(reference, weight)."
        raise_argument_error("clusters", "a ClusteredReferences", type(clusters).__name__, remedy, TypeError)
    rows, dim = reference.shape
    if clusters.rows != rows:
        raise_argument_error("clusters", f"clusters of {rows} references", f"clusters of {clusters.rows}", REMEDY)
    acc = ACCUMULATE[reference.dtype]
    count = clusters.pivots.shape[0] if isinstance(clusters.pivots, Tensor) and clusters.pivots.dim() else 0
    for name, dtype, sizes in (
        ("pivots", reference.dtype, (count, dim)),
        ("order", torch.int64, (rows,)),
        ("offsets", torch.int64, (count + 1,)),
        ("radii", torch.float64, (rows,)),
        ("center", acc, (dim,)),
        ("weight", acc, (dim,)),
    ):
        check_field(f"clusters.{name}", getattr(clusters, name), dtype, sizes, reference.device, REMEDY)


def check_clusters_weight(clusters: ClusteredReferences, weight: Tensor) -> None:
    """Checks that the clusters were made for these weights."""
    if not same_weights(clusters.weight, weight.to(clusters.weight.dtype)):
        raise_argument_error("clusters", "clusters made for these weights", "clusters made for others", REMEDY)


def check_clusters_offsets(clusters: ClusteredReferences) -> None:
    offsets = clusters.offsets
    if offsets[0] != 0 or offsets[-1] != clusters.rows or bool((offsets.diff() < 0).any()):
        expected = f"numbers that ascend from 0 to {clusters.rows}"
        raise_argument_error("clusters.offsets", expected, "others", REMEDY)
