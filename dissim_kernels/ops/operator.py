"""Operators of torch that cost a plain eager call little, and what autograd is given to keep.

What a call costs, for scores of 8 x 8 rows of 16 numbers in one thread (AMD EPYC, torch 2.13, minimum of 600 rounds):
custom_op 19.3 us, the same function as a plain operator of torch.library 15.8, `Operator` 13.6, the function itself
8.8. A check of the arguments takes 6.7 more, which `Operator`, whose callers have checked, would not need. The
kernel's own operator, in C++, takes 3.4: less by 10 of the 38 us of the public function, but then the choice of a
backend would be needed in C++ as well.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import custom_op, infer_schema
from torch.overrides import has_torch_function


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
    return transformed() or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs if x is not None))


def transformed() -> bool:
    """Whether torch.func or forward mode watches an eager call: they reach a Function, not an operator's formula."""
    if torch.compiler.is_compiling():
        return False
    return _transforms_active() or getattr(forward_ad, "_current_level", 0) >= 0


def save(ctx, *tensors: Tensor) -> None:
    """`ctx.save_for_backward`, but a tensor that is given twice is saved once: hooks may copy each that is saved."""
    unique = {id(x): x for x in tensors}
    places = list(unique)
    ctx.places = [places.index(id(x)) for x in tensors]
    ctx.save_for_backward(*unique.values())


def saved(ctx) -> list[Tensor]:
    """What `save` was given. To be asked for once in a backward: checkpointing gives it at the first reading only."""
    unique = ctx.saved_tensors
    return [unique[place] for place in ctx.places]


# --- what torch tells in private functions; without them a call takes the longer way, which is right too --------


def _keys_of_plain_calls() -> int | None:
    """The dispatch keys of tensors and threads for which the dispatcher only runs the kernel, as bits."""
    names = ["ADInplaceOrView", "BackendSelect"]
    names += [kind + device for device in ("CPU", "CUDA") for kind in ("", "Autograd", "Autocast")]
    bits = 0
    try:
        torch._C._dispatch_keys, torch._C._dispatch_tls_local_include_set  # noqa: B018
        for name in names:
            bits |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)).raw_repr()
    except AttributeError:
        return None
    return bits


_PLAIN = _keys_of_plain_calls()
_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _watched(arguments: Sequence) -> bool:
    """Whether torch would do more with a call than run the kernel: for a compiler, tracer, mode, transform, autograd
    or another kind of tensor. Each has a dispatch key, in the thread or in a tensor."""
    if _PLAIN is None or torch.compiler.is_compiling() or has_torch_function(arguments):
        return True
    if getattr(forward_ad, "_current_level", 0) >= 0:
        return True
    keys, grad_enabled = torch._C._dispatch_tls_local_include_set(), torch.is_grad_enabled()
    for x in arguments:
        if isinstance(x, Tensor):
            if grad_enabled and x.requires_grad:
                return True
            keys |= torch._C._dispatch_keys(x)
        elif isinstance(x, list) and _watched(x):
            return True
    return bool(keys.raw_repr() & ~_PLAIN)
