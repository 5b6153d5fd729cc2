"""Custom operators with little overhead for plain eager calls, and what their autograd rules share.

Overhead of one call, for scores of 8 x 8 rows of 16 numbers in one thread (AMD EPYC, torch 2.13, minimum of 600
rounds):

    custom_op of torch.library               19.3 us
    plain operator of torch.library          15.8 us
    `Operator` below                         13.6 us
    the Python function without an operator   8.8 us
    the kernel's own C++ operator             3.4 us

A check of the arguments adds 6.7 us. `Operator` omits it for calls by the public functions, which have checked them.
Calling the C++ operator directly would save 10 of the 38 us of the public function, but the choice of a backend would
then have to be written in C++ as well.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import custom_op, infer_schema
from torch.overrides import has_torch_function

from ..contract import OPERATOR_REMEDY


class Operator:
    """A `custom_op` that plain eager calls bypass: they run its function directly.

    On a small problem, torch's dispatch of a Python operator takes several times as long as the kernel.

    `check` validates the arguments of calls through torch, which need not come from our public functions.
    `check_values` is a further check that reads data, which traced calls have not. A `differentiable` operator raises
    if it is called in forward mode, which would lose the tangents.
    """

    def __init__(
        self,
        name: str,
        run: Callable,
        check: Callable,
        check_values: Callable | None = None,
        differentiable: bool = True,
    ):
        @functools.wraps(run)
        def checked(*arguments):
            check(*arguments)
            if check_values is not None:
                check_values(*arguments)
            if differentiable and in_forward_mode() and torch._C._is_fwd_grad_enabled():
                _raise_no_forward_mode(name)
            return run(*arguments)

        self.registered = custom_op(name, checked, mutates_args=(), schema=infer_schema(run, mutates_args=()))
        self.register_autograd = self.registered.register_autograd
        self.register_vmap = self.registered.register_vmap
        self.__signature__ = inspect.signature(run)  # computed once: an autograd.Function reads it in every call
        self._run, self._check = run, check

    def register_fake(self, fake: Callable) -> None:
        """Registers the function that gives results without data. Arguments are checked as for data."""

        @self.registered.register_fake
        def _(*arguments):
            self._check(*arguments)
            return fake(*arguments)

        self.empty_results = fake

    def __call__(self, *arguments):
        return self.registered(*arguments) if _needs_dispatcher(arguments) else self._run(*arguments)


def operator(name: str, *options, **named_options) -> Callable[[Callable], Operator]:
    """Decorator that makes a function an `Operator`, with the same options."""
    return lambda run: Operator(name, run, *options, **named_options)


def _raise_no_forward_mode(name: str) -> NoReturn:
    """For a call through torch.ops, or by a program compiled without a dual level. Functions keep the tangents."""
    raise NotImplementedError(
        f"torch.ops.{name.replace('::', '.')}: it has no forward-mode derivative. {OPERATOR_REMEDY} If a program was"
        " compiled before the dual level began, compile it anew inside: call torch.compiler.reset() first."
    )


def call(function: type[torch.autograd.Function], operator: Operator, *arguments):
    """Calls an operator of which `function` is the Function: through it if the call may be differentiated.

    The operator alone costs less, and is what a compiler can put into its graph. But with it a derivative of
    torch.func and forward mode fail or give zeros without an error (pytorch#179652). A compiled program that takes
    one therefore breaks its graph here.
    """
    if torch.compiler.is_compiling():
        return _apply_outside(function, *arguments) if _differentiated_in_graph() else operator(*arguments)
    return function.apply(*arguments) if _differentiated(arguments) else operator(*arguments)


def _differentiated(arguments: Sequence) -> bool:
    if transformed():
        return True
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)


def transformed() -> bool:
    """Whether torch.func or forward mode is active in an eager call. They use a Function, not `register_autograd`."""
    if torch.compiler.is_compiling():
        return False
    return _transforms_active() or in_forward_mode(if_unknown=True)


def in_forward_mode(if_unknown: bool = False) -> bool:
    level = getattr(forward_ad, "_current_level", None)
    return if_unknown if level is None else level >= 0


def _apply(function: type[torch.autograd.Function], *arguments):
    return function.apply(*arguments)


_apply_outside = _apply  # of the graph, as soon as `_differentiated_in_graph` was called


def _differentiated_in_graph() -> bool:
    """Whether forward mode or a derivative of torch.func is active while a compiler traces. vmap alone is none."""
    global _apply_outside
    if _apply_outside is _apply:  # not earlier, because it imports the compiler, which takes a second
        reason = "dissim_kernels: derivatives of torch.func and forward mode need a graph break. Omit fullgraph=True."
        _apply_outside = torch.compiler.disable(_apply, reason=reason)
    layers = {layer.key().name for layer in _transform_layers() or ()}
    if "Grad" in layers and torch.__version__ < "2.13":  # there, jacrev is 0 if it breaks the graph
        raise NotImplementedError(
            f"dissim_kernels: a compiled program with a derivative of torch.func needs PyTorch 2.13, got"
            f" {torch.__version__}. Call the derivative outside of torch.compile."
        )
    return in_forward_mode() or not layers <= {"Vmap"}


# The compiler calls it while it traces. It is what torch.compiler.assume_constant_result sets, without the import.
_differentiated_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def save(ctx, *tensors: Tensor) -> None:
    """`ctx.save_for_backward` that saves a tensor once if it occurs twice: saved-tensor hooks may copy each one."""
    unique = {id(x): x for x in tensors}
    places = list(unique)
    ctx.places = [places.index(id(x)) for x in tensors]
    ctx.save_for_backward(*unique.values())


def saved(ctx) -> list[Tensor]:
    """The tensors given to `save`. Read it once per backward: activation checkpointing allows only one read."""
    unique = ctx.saved_tensors
    return [unique[place] for place in ctx.places]


def vmap_by_loop(operator: Operator) -> Callable:
    """A vmap rule that calls the operator once per entry of the mapped dimension and stacks the results."""

    def rule(info, in_dims, *args):
        def entry(value, dim, i):
            if isinstance(dim, list | tuple):
                return [entry(v, d, i) for v, d in zip(value, dim, strict=True)]
            if dim is None:
                return value
            return value.select(dim, i) if info.batch_size else value.new_empty(value.movedim(dim, 0).shape[1:])

        def call_entry(run, i):
            return run(*(entry(a, d, i) for a, d in zip(args, in_dims, strict=True)))

        if info.batch_size:
            outs = [call_entry(operator, i) for i in range(info.batch_size)]
        else:
            outs = [call_entry(operator.empty_results, 0)]  # only for the shapes and dtypes
        if isinstance(outs[0], Tensor):
            return torch.stack(outs)[: info.batch_size], 0
        stacked = [torch.stack(column)[: info.batch_size] for column in zip(*outs, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


# --- private functions of torch. If a version lacks them, every call goes through the dispatcher, which is correct
# ---


def _keys_of_plain_calls() -> int | None:
    """Bit set of the dispatch keys for which the dispatcher does nothing but run the kernel."""
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
_transform_layers = getattr(getattr(torch._C, "_functorch", None), "get_interpreter_stack", lambda: ())


def _needs_dispatcher(arguments: Sequence) -> bool:
    """Whether the dispatcher would do more than run the kernel: for a compiler, tracer, mode, transform, autograd or
    tensor subclass. Each of them sets a dispatch key, in the thread or in a tensor."""
    if _PLAIN is None or torch.compiler.is_compiling() or has_torch_function(arguments):
        return True
    if in_forward_mode(if_unknown=True):
        return True
    keys, grad_enabled = torch._C._dispatch_tls_local_include_set(), torch.is_grad_enabled()
    for x in arguments:
        if isinstance(x, Tensor):
            if grad_enabled and x.requires_grad:
                return True
            keys |= torch._C._dispatch_keys(x)
        elif isinstance(x, list) and _needs_dispatcher(x):
            return True
    return bool(keys.raw_repr() & ~_PLAIN)
