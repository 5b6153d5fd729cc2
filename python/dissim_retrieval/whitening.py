"""Within-class whitening: the linear map that a learned projection starts from and has to beat."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: The shrinkages that are tried. With the largest, the whitening is nearly a principal component analysis.
SHRINKAGES = (0.01, 0.1, 1.0, 10.0, 100.0)


class Whitening(NamedTuple):
    """``(embeddings - mean) @ matrix``: mean [D], matrix [D, dim]."""

    mean: Tensor
    matrix: Tensor

    def top(self, dim: int) -> Whitening:
        """Only the `dim` directions of the largest variance."""
        return Whitening(self.mean, self.matrix[:, -dim:])

    def __call__(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) @ self.matrix


def within_class_whitening(embeddings: Tensor, labels: Tensor, shrinkage: float) -> Whitening:
    """The whitening of embeddings [N, D] by their covariance within the labels, int64 [N] (linear discriminants).

    Directions in which images of one identity differ are scaled down. The columns of the matrix [D, D] are in the
    order of the variance of the result. shrinkage, in multiples of the mean variance, is added to every direction's
    variance first, because a covariance from few images is uncertain. Computed in float64: D^3 operations.
    """
    rows = embeddings.double()
    mean = rows.mean(0)
    _, identity, count = labels.unique(return_inverse=True, return_counts=True)
    centers = torch.zeros(len(count), rows.shape[1], dtype=rows.dtype, device=rows.device)
    centers.index_add_(0, identity, rows).div_(count[:, None])
    within = rows - centers[identity]
    covariance = within.T @ within / len(rows)
    # If the rows of each identity are equal, the covariance is 0, or rounding errors.
    unit = torch.maximum(covariance.diagonal().mean(), 1e-12 * (rows - mean).square().mean())
    covariance.diagonal().add_(shrinkage * unit)
    variance, direction = torch.linalg.eigh(covariance)
    whitened = direction * variance.clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    spread = (rows - mean) @ whitened
    axes = torch.linalg.eigh(spread.T @ spread).eigenvectors
    return Whitening(mean.to(embeddings.dtype), (whitened @ axes).to(embeddings.dtype))
