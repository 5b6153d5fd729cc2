"""Operators with a first derivative and no further one: what the hinge loss and the log-sum-exp share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch

from .operator import Operator, vmap_by_loop


def register_first_derivative(
    operator: Operator, backward_operator: Operator, *, save: Callable, gradients: Callable, no_derivative: str
) -> tuple[type[torch.autograd.Function], type[torch.autograd.Function]]:
    """Make `gradients`, which calls `backward_operator`, the derivative of `operator`, and give both a vmap rule.

    Second derivatives and forward mode raise NotImplementedError with the text `no_derivative`, in which {} is
    replaced by the kind of derivative.

    Returns the `autograd.Function` of each operator. Eager calls that may be differentiated use that of `operator`.
    Under torch.func, `gradients` uses that of `backward_operator`, through which torch.func reaches its errors.
    """

    def raise_error(derivative: str) -> NoReturn:
        raise NotImplementedError(no_derivative.format(derivative))

    operator.register_autograd(gradients, setup_context=save)
    backward_operator.register_autograd(lambda ctx, *directions: raise_error("second derivative"))
    operator.register_vmap(vmap_by_loop(operator))
    backward_operator.register_vmap(vmap_by_loop(backward_operator))

    class Forward(torch.autograd.Function):
        generate_vmap_rule = True
        forward = staticmethod(operator)
        setup_context = staticmethod(save)
        backward = staticmethod(gradients)

        @staticmethod
        def jvp(ctx, *tangents):
            raise_error("forward-mode derivative")

    class Backward(torch.autograd.Function):
        generate_vmap_rule = True
        forward = staticmethod(backward_operator)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, *directions):
            raise_error("second derivative")

        @staticmethod
        def jvp(ctx, *tangents):
            raise_error("second derivative")

    return Forward, Backward
