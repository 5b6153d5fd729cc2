"""Small float64 inputs, and functions of them, for the tests of derivatives and of torch's transforms."""

import torch

from dissim_kernels import (
    fused_dissim_hinge_loss,
    fused_dissim_logsumexp,
    fused_dissim_rank,
    fused_dissim_score,
    testing,
)

INPUTS = testing.random_inputs((4, 5), (6, 5), dtype=torch.float64, seed=3)
#: Labels of the queries and of the references.
SIDES = (torch.arange(4) % 2, torch.arange(6) % 2)


def leaves():
    """Copies of the inputs that require gradients."""
    return [x.clone().requires_grad_() for x in INPUTS]


def plain(*arguments):
    """A number that depends on every score, by plain torch."""
    return testing.plain_score(*arguments).square().sum()


def fused(*arguments):
    """The same number by the fused score."""
    return fused_dissim_score(*arguments).square().sum()


def hinge_loss(*arguments, **options):
    return fused_dissim_hinge_loss(*arguments, *SIDES, **options)


def logsumexp(*arguments, **options):
    labels = {"query_labels": SIDES[0], "reference_labels": SIDES[1]}
    return fused_dissim_logsumexp(*arguments, scale=0.5, **labels, **options)


def ranks(*arguments, **options):
    """The ranks of every match, with its score."""
    labels = {"query_labels": SIDES[0], "reference_labels": SIDES[1]}
    return fused_dissim_rank(*arguments, **labels, return_scores=True, **options)
