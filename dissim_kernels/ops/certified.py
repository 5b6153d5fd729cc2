"""Exact top-k by way of a scan over 8-bit codes with certified bounds (E10): the doors and the operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import (
    ACCUMULATE,
    Search,
    check_count,
    check_filters,
    check_matrix_inputs,
    check_reference_inputs,
    check_topk_operands,
    refuse,
    shape,
)
from ..dispatch import check_backend, resolve
from .operator import differentiated, operator
from .score import autocast_to_float32, head_bias, problem_of
from .topk import being_captured, check_k, refuse_too_few

#: D and M at most: sums of codes fit 31 bits, row numbers 32.
MOST_DIMENSIONS, MOST_REFERENCES = 2**19, 2**32


class Quantised(NamedTuple):
    """References as 8-bit codes, made by `quantise_references`: tensors and a number, which torch.save stores and
    torch.load reads, once dissim_kernels is imported.

    Column c of row m stands for the value low[c] + code / inverse[c] of dimension columns[c];
    the columns of positive weights come first, each sign filled up to a multiple of 8 with columns of inverse 0.
    """

    codes: Tensor  #: uint8 [ceil(M / 16), groups, 16, 8]: panels of 16 rows, groups of 8 columns
    errors: Tensor  #: int32 [16 ceil(M / 16)]: what a row's codes may be off by, in steps (E10); 2**29: no bound
    columns: Tensor  #: int64 [8 groups]
    low: Tensor  #: [8 groups], wide
    inverse: Tensor  #: [8 groups], wide: abs(weight) / step
    top: Tensor  #: [8 groups], wide: the highest code in use
    weight: Tensor  #: [D], wide: the weights it was made for
    step: Tensor  #: float64 []: what a step is worth in a score
    rows: int  #: M


torch.serialization.add_safe_globals([Quantised])
#: What to do about codes that do not fit.
REMEDY = "Make it anew with quantise_references(reference, weight)."


class CertifiedTopK(NamedTuple):
    """scores [N, k] and indices int64 [N, k] as of `fused_dissim_topk`; rescored int64 [N]."""

    scores: Tensor
    indices: Tensor
    rescored: Tensor


def quantise_references(reference: Tensor, weight: Tensor) -> Quantised:
    """Prepares references for `certified_dissim_topk`: one byte for each value, one error bound for each row.

    Plain torch, for a step chosen from a sample of rows::

        codes = ((reference - low) * weight.abs() / step).round().clamp(0, 255).byte()
        errors = (weight.abs() * (reference - low - codes * step / weight.abs()).abs()).sum(1) / step

    reference [M, D] and weight [D], dtypes as in `fused_dissim_score`; any strides. Rows with NaN, Inf or values
    whose differences might overflow have no bound and are always rescored. It is good for these references and
    weights only; the references themselves are still needed to rescore. The layout is the same on every device.
    Gives no derivative.

    Cost: two passes over the references; memory: M D bytes. On CUDA it waits for the device.

    >>> import torch
    >>> quantised = quantise_references(torch.randn(100, 6), torch.tensor([-1.0, 2, 0, -1, -1, -1]))
    >>> quantised.codes.shape
    torch.Size([7, 2, 16, 8])
    """
    reference, weight = autocast_to_float32(reference, weight)
    check_reference_inputs(reference, weight)
    _check_sizes(reference)
    module = resolve("auto", problem_of("certified", reference))
    return Quantised._make([*module.quantise_references(reference.detach(), weight.detach()), reference.shape[0]])


def certified_dissim_topk(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | float | None = None,
    *,
    k: int,
    quantised: Quantised | None = None,
    largest: bool = True,
    exclude: Tensor | None = None,
    query_labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    backend: str = "auto",
) -> CertifiedTopK:
    """What `fused_dissim_topk` returns, bit by bit, from a scan over bytes and a few exact scores.

    Plain torch, but for ties and NaN::

        fused_dissim_score(query, reference, weight, bias).topk(k, largest=largest)

    Args:
        quantised: what `quantise_references(reference, weight)` returned, to make once and use for many calls; None
            makes it in the call. Other arguments as in `fused_dissim_topk`.

    A sum of byte differences gives every score up to a certified error (E10), so only references that may be among
    the k best are scored in full precision. `rescored` counts, for each query, those whose bound reaches the k-th
    best score, on CUDA a score not far below it. Weights of any signs; the smaller the share of rows near the best,
    the faster; data on which every row is near is rescored whole and takes longer than `fused_dissim_topk`. Backend
    "triton" has no such search; "reference" looks at no codes and scores every row.

    Cost: N M D steps on bytes (with AVX2 two instructions do 32 of them, where three do 8 of a float32 score; on
    CUDA one does 4, where two do 1), and the rescored rows. Memory on the CPU: what `fused_dissim_topk` takes, the
    codes of the queries and 32 MiB of candidates at most, or 48 k bytes if these are more; on CUDA 64 MiB of bounds
    and candidates at most, or what 128 queries need, a byte for each 4 references and some for each of k. Refuses a
    derivative and vmap. Errors as in `fused_dissim_topk`, and ValueError for `quantised` of other weights, another
    number of references, another device or a damaged one: each tensor's dtype, shape and contiguity and the range of
    its columns are checked, codes and errors themselves are not. On CUDA the check of weights and columns waits for
    the device, and is left out while a graph is captured, as is the one of `fused_dissim_topk`; with `quantised`
    given nothing else waits.

    >>> import torch
    >>> found = certified_dissim_topk(torch.zeros(1, 2), torch.eye(3)[:, :2], torch.tensor([-1.0, -2.0]), k=2)
    >>> found.indices
    tensor([[2, 0]])
    """
    check_backend(backend)
    query, reference, weight, bias = autocast_to_float32(query, reference, weight, bias)
    check_matrix_inputs(query, reference, weight, bias)
    check_count("k", k, 0)
    check_filters(query, reference, exclude, query_labels, reference_labels)
    _check_sizes(reference)
    if quantised is None:
        quantised = quantise_references(reference, weight)
    else:
        _check_quantised(quantised, reference)
    *codes, rows = quantised
    tensors = [query, reference, weight, head_bias(bias, weight)]
    arguments = (k, largest, exclude, query_labels, reference_labels, codes, rows, backend)
    if torch.compiler.is_compiling():
        tensors = [t if t is None else t.detach() for t in tensors]
    call = _CertifiedTopK.apply if differentiated(*tensors) else certified_topk
    return CertifiedTopK(*call(*tensors, *arguments))


def _check_sizes(reference: Tensor) -> None:
    for rows, most, what in ((0, MOST_REFERENCES, "rows"), (1, MOST_DIMENSIONS, "columns")):
        if reference.shape[rows] >= most:
            refuse("reference", f"fewer than {most} {what}", shape(reference), "Use fused_dissim_topk.")


def _check_quantised(quantised: object, reference: Tensor) -> None:
    """Everything but values: those are read by `_check_values`."""
    if not isinstance(quantised, Quantised):
        got = type(quantised).__name__
        refuse("quantised", "a Quantised", got, "Make it with quantise_references(reference, weight).", TypeError)
    assert isinstance(quantised, Quantised)
    rows, dim = reference.shape
    if quantised.rows != rows:
        refuse("quantised", f"codes of {rows} references", f"codes of {quantised.rows}", REMEDY)
    acc = ACCUMULATE[reference.dtype]
    groups = quantised.codes.shape[1] if isinstance(quantised.codes, Tensor) and quantised.codes.dim() == 4 else 0
    panels = -(-rows // 16)
    for name, dtype, sizes in (
        ("weight", acc, (dim,)),
        ("codes", torch.uint8, (panels, groups, 16, 8)),
        ("errors", torch.int32, (16 * panels,)),
        ("columns", torch.int64, (8 * groups,)),
        ("low", acc, (8 * groups,)),
        ("inverse", acc, (8 * groups,)),
        ("top", acc, (8 * groups,)),
        ("step", torch.float64, ()),
    ):
        tensor = getattr(quantised, name)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            refuse(f"quantised.{name}", "a dense torch.Tensor", type(tensor).__name__, REMEDY, TypeError)
        if tensor.dtype != dtype or tensor.shape != sizes:
            got = f"{tensor.dtype} {list(tensor.shape)}"
            refuse(f"quantised.{name}", f"{dtype} {list(sizes)}", got, REMEDY)
        if tensor.device != reference.device:
            refuse(f"quantised.{name}", f"reference's device {reference.device}", tensor.device, REMEDY)
        if not tensor.is_contiguous():
            refuse(f"quantised.{name}", "a contiguous tensor", f"strides {tensor.stride()}", "Use .contiguous().")


def _check_values(quantised: Quantised, weight: Tensor) -> None:
    """That they are of these weights. On CUDA it waits for the device; on the CPU the kernel that reads the columns
    looks at their range itself."""
    made_for, columns = quantised.weight, quantised.columns
    weight = weight.to(made_for.dtype)
    same = torch.equal(made_for.nan_to_num(), weight.nan_to_num())
    groups = sum((int((side > 0).sum()) + 7) // 8 for side in (weight, -weight))
    inside = weight.device.type == "cpu" or bool(((columns >= 0) & (columns < len(weight))).all())
    if not same:
        refuse("quantised", "codes made for these weights", "codes made for others", REMEDY)
    if 8 * groups != len(columns):
        refuse("quantised.columns", "8 for each 8 weights of a sign, rounded up", len(columns), REMEDY)
    if not inside:
        refuse("quantised.columns", f"numbers from 0 to {len(weight) - 1}", "others", REMEDY)


def _check_operands(query, reference, *others):
    """As of the top-k, with the tensors of a `Quantised` and its rows."""
    *of_topk, codes, rows, _ = others
    check_topk_operands(query, reference, *of_topk)
    _check_sizes(reference)
    if len(codes) != len(Quantised._fields) - 1:
        refuse("codes", "the tensors of a Quantised", f"{len(codes)} tensors", REMEDY)
    _check_quantised(Quantised._make([*codes, rows]), reference)


@operator("dissim::certified_topk", _check_operands)
def certified_topk(
    query: Tensor,
    reference: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    largest: bool,
    exclude: Tensor | None,
    query_labels: Tensor | None,
    reference_labels: Tensor | None,
    codes: Sequence[Tensor],
    rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    check_k(k, reference)
    module = resolve(backend, problem_of("certified", query))
    if not being_captured(query):
        _check_values(Quantised._make([*codes, rows]), weight)
    filters = (exclude, query_labels, reference_labels)
    search = Search(query, reference, weight, bias, k, largest, *filters)
    scores, indices, rescored = module.certified(search, codes)
    if exclude is not None or query_labels is not None:
        refuse_too_few(indices, k)
    return scores.to(query.dtype), indices, rescored


@certified_topk.register_fake
def _(query, reference, weight, bias, k, largest, exclude, query_labels, reference_labels, codes, rows, backend):
    scores = query.new_empty(query.shape[0], k)
    rescored = query.new_empty(query.shape[0], dtype=torch.int64)
    return scores, torch.empty_like(scores, dtype=torch.int64), rescored


class _CertifiedTopK(torch.autograd.Function):
    """Gives no derivative and no batch rule, and says so where torch alone would take the derivative for zero."""

    forward = staticmethod(certified_topk)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, *grads):
        _refuse("its scores have no derivative")

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse("its scores have no derivative")

    @staticmethod
    def vmap(info, in_dims, *args):
        _refuse("vmap is not implemented")


def _refuse(what: str) -> None:
    raise NotImplementedError(
        f"certified_dissim_topk: {what}. Use fused_dissim_topk under vmap; to train, gather reference[indices] and "
        "score the rows with paired_dissim_score, or detach the scores."
    )
