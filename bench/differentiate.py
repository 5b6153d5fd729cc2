"""Forward and backward passes by autograd, for every competitor that is a differentiable function.

function(problem, query, reference, weight) -> scores [N, M], or a scalar loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Problem
from .registry import Call


def leaves(problem: Problem) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in (problem.query, problem.reference, problem.weight)]


def step_of(problem: Problem, function) -> Call:
    """Forward and backward: the gradients of query, reference and weight, after the loss if the function is one."""
    inputs = leaves(problem)

    def step():
        out = function(problem, *inputs)
        gradients = torch.autograd.grad(out, inputs, problem.grad)
        return gradients if out.dim() else (out.detach(), *gradients)

    return step


def backward_of(problem: Problem, function) -> Call:
    """The backward pass only. The graph is built once and retained."""
    inputs = leaves(problem)
    out = function(problem, *inputs)
    return lambda: torch.autograd.grad(out, inputs, problem.grad, retain_graph=True)
