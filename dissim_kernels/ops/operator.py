"""Operators of torch that cost a plain eager call nothing, and the questions who watches a call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import custom_op, infer_schema


class Operator:
    """`custom_op`, but a call that torch would only pass on runs the function at once.

    On a small problem torch's way to an operator of Python takes several times as long as the kernel.

    `check` looks at the arguments of calls through torch, which need not come from our public functions.
    """

    def __init__(self, name: str, run: Callable, check: Callable):
        @functools.wraps(run)
        def checked(*arguments):
            check(*arguments)
            return run(*arguments)

        self.registered = custom_op(name, checked, mutates_args=(), schema=infer_schema(run, mutates_args=()))
        self.register_autograd = self.registered.register_autograd
        self.register_vmap = self.registered.register_vmap
        self.__signature__ = inspect.signature(run)  # made once: an autograd.Function asks for it in every call
        self._run, self._check = run, check

    def register_fake(self, fake: Callable) -> None:
        """What the operator gives without data, for arguments checked as those with data are."""

        @self.registered.register_fake
        def _(*arguments):
            self._check(*arguments)
            return fake(*arguments)

    def __call__(self, *arguments):
        return self.registered(*arguments) if _watched(arguments) else self._run(*arguments)


def operator(name: str, check: Callable) -> Callable[[Callable], Operator]:
    """The decorator: `custom_op(name, mutates_args=())` of a function whose arguments `check` looks at first."""
    return lambda run: Operator(name, run, check)


def differentiated(*inputs: Tensor | None) -> bool:
    """Whether an eager call may be asked for derivatives; if not, the operator alone costs less."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level >= 0:  # within dual_level()
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs if x is not None)


def _watched(arguments: tuple) -> bool:
    """Whether a compiler, a tracer, a mode, a transform, autograd or a tensor of another kind needs the operator."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if torch._C._len_torch_dispatch_stack() or torch._ops._len_torch_dispatch_stack_pre_dispatch():
        return True
    flat = [y for x in arguments for y in (x if isinstance(x, list | tuple) else (x,))]
    tensors = [x for x in flat if isinstance(x, Tensor)]
    return differentiated(*tensors) or any(x.is_meta or type(x) not in (Tensor, torch.nn.Parameter) for x in tensors)
