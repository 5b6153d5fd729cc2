"""8-bit codes of references with error bounds (E10): the public function, its result type and their checks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import (
    ACCUMULATE,
    GROUP,
    PANEL,
    Problem,
    check_reference_inputs,
    raise_argument_error,
    shape,
)
from ..dispatch import resolve
from .arguments import autocast_to_float32

#: D and M must be smaller than these, so that sums of code differences fit in 31 bits and row numbers in 32.
MAX_DIMENSIONS, MAX_REFERENCES = 2**19, 2**32


class QuantizedReferences(NamedTuple):
    """References as 8-bit codes, the result of `quantize_references`.

    torch.save stores it; torch.load reads it if dissim_kernels is imported.

    Code c of a row stands for the value offset[c] + code / inv_scale[c] of dimension dim_order[c]. The columns of
    positive weights come first, then those of negative weights. Each of the two parts is padded to a multiple of 8
    columns; padding has inv_scale 0.
    """

    codes: Tensor  #: uint8 [ceil(M / 16), groups, 16, 8]: panels of 16 rows, groups of 8 columns
    error_bounds: Tensor  #: int32 [16 ceil(M / 16)]: bound on a row's share of the error, in steps; 2**29: no bound
    dim_order: Tensor  #: int64 [8 groups]: the dimension of each column
    offset: Tensor  #: [8 groups] in the accumulator dtype: the value of code 0
    inv_scale: Tensor  #: [8 groups] in the accumulator dtype: abs(weight) / step
    max_code: Tensor  #: [8 groups] in the accumulator dtype: the largest code in use
    weight: Tensor  #: [D] in the accumulator dtype: the weights it was made for
    step: Tensor  #: float64 []: the difference of scores that one code is worth
    rows: int  #: M


torch.serialization.add_safe_globals([QuantizedReferences])
#: How to fix codes that do not match the call.
REMEDY = "Create it again with quantize_references(reference, weight)."


def quantize_references(reference: Tensor, weight: Tensor) -> QuantizedReferences:
    """Prepares references for `fused_dissim_topk(..., quantized=)`: one byte per value, one error bound per row.

    Plain torch, for offsets and a step chosen from a sample of rows::

        codes = ((reference - offset) * weight.abs() / step).round().clamp(0, 255).byte()
        error = (weight.abs() * (reference - offset - codes * step / weight.abs()).abs()).sum(1) / step

    reference [M, D] and weight [D], dtypes as in `fused_dissim_score`, any strides; D < 2**19 and M < 2**32. Rows
    with NaN, Inf or values whose differences might overflow have no bound and are rescored in every search. The codes
    are valid for these references and weights only, and a search still needs the references. The layout is the same
    on every device. Not differentiable.

    Cost: two passes over the references. Memory: M D bytes. On CUDA the call waits for the device. Errors name
    `reference` or `weight`, as in `fused_dissim_score`.

    >>> import torch
    >>> quantized = quantize_references(torch.randn(100, 6), torch.tensor([-1.0, 2, 0, -1, -1, -1]))
    >>> quantized.codes.shape
    torch.Size([7, 2, 16, 8])
    """
    reference, weight = autocast_to_float32(reference, weight)
    check_reference_inputs(reference, weight)
    check_sizes(reference)
    module = resolve("auto", Problem("quantize", reference.device))
    tensors = module.quantize_references(reference.detach(), weight.detach())
    return QuantizedReferences._make([*tensors, reference.shape[0]])


def check_sizes(reference: Tensor) -> None:
    for dim, limit, what in ((0, MAX_REFERENCES, "rows"), (1, MAX_DIMENSIONS, "columns")):
        if reference.shape[dim] >= limit:
            remedy = "Use fused_dissim_topk without quantized."
            raise_argument_error("reference", f"fewer than {limit} {what}", shape(reference), remedy)


def check_quantized(quantized: object, reference: Tensor) -> None:
    """Checks types, dtypes, shapes and devices. `check_quantized_values` checks values."""
    if not isinstance(quantized, QuantizedReferences):
        remedy = "Create it with quantize_references(reference, weight)."
        raise_argument_error("quantized", "a QuantizedReferences", type(quantized).__name__, remedy, TypeError)
    rows, dim = reference.shape
    if quantized.rows != rows:
        raise_argument_error("quantized", f"codes of {rows} references", f"codes of {quantized.rows}", REMEDY)
    acc = ACCUMULATE[reference.dtype]
    groups = quantized.codes.shape[1] if isinstance(quantized.codes, Tensor) and quantized.codes.dim() == 4 else 0
    panels, columns = -(-rows // PANEL), GROUP * groups
    for name, dtype, sizes in (
        ("weight", acc, (dim,)),
        ("codes", torch.uint8, (panels, groups, PANEL, GROUP)),
        ("error_bounds", torch.int32, (PANEL * panels,)),
        ("dim_order", torch.int64, (columns,)),
        ("offset", acc, (columns,)),
        ("inv_scale", acc, (columns,)),
        ("max_code", acc, (columns,)),
        ("step", torch.float64, ()),
    ):
        check_field(f"quantized.{name}", getattr(quantized, name), dtype, sizes, reference.device, REMEDY)


def check_field(
    name: str, tensor: object, dtype: torch.dtype, sizes: tuple[int, ...], device: torch.device, remedy: str
) -> None:
    """Checks a tensor of prepared references."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise_argument_error(name, "a dense torch.Tensor", type(tensor).__name__, remedy, TypeError)
    if tensor.dtype != dtype or tensor.shape != sizes:
        got = f"{tensor.dtype} {list(tensor.shape)}"
        raise_argument_error(name, f"{dtype} {list(sizes)}", got, remedy)
    if tensor.device != device:
        raise_argument_error(name, f"reference's device {device}", tensor.device, remedy)
    if not tensor.is_contiguous():
        raise_argument_error(name, "a contiguous tensor", f"strides {tensor.stride()}", "Use .contiguous().")


def same_weights(made_for: Tensor, weight: Tensor) -> bool:
    """Whether weights of one dtype are equal, NaN to NaN."""
    return torch.equal(made_for, weight) or torch.allclose(made_for, weight, rtol=0, atol=0, equal_nan=True)


def check_quantized_values(quantized: QuantizedReferences, weight: Tensor) -> None:
    """Checks that the codes belong to these weights. On CUDA it waits for the device.

    On the CPU, the kernel that reads dim_order checks its range.
    """
    quantized_weight, dim_order = quantized.weight, quantized.dim_order
    weight = weight.to(quantized_weight.dtype)
    groups = sum(-(-int((side > 0).sum()) // GROUP) for side in (weight, -weight))
    in_range = weight.device.type == "cpu" or bool(((dim_order >= 0) & (dim_order < len(weight))).all())
    if not same_weights(quantized_weight, weight):
        raise_argument_error("quantized", "codes made for these weights", "codes made for others", REMEDY)
    if GROUP * groups != len(dim_order):
        expected = "8 for each 8 weights of a sign, rounded up"
        raise_argument_error("quantized.dim_order", expected, len(dim_order), REMEDY)
    if not in_range:
        raise_argument_error("quantized.dim_order", f"numbers from 0 to {len(weight) - 1}", "others", REMEDY)
