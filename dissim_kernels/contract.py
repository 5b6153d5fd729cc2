"""What every operator accepts: shapes, the dtype table, and the text of every error at the door.

An error names the argument, what was expected, what came, and what to do. Nothing here touches data, so the
checks run the same under FakeTensor, torch.compile and torch.export.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: embedding dtype -> accumulate dtype. A new dtype is one row here and one in csrc/dissim.h.
ACCUMULATE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}

BALANCES = ("pairs", "classes")
REDUCTIONS = ("mean", "sum", "none")


class Problem(NamedTuple):
    """What a backend needs to know to accept or refuse a call (see dispatch.py)."""

    operation: str  # "score", "topk", "certified" or "hinge"
    device: torch.device  # of its tensors: devices of one machine may differ


class Search(NamedTuple):
    """A top-k as backends get it, all checked: one matrix of each side, and who is left out."""

    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    bias: Tensor | None  # [1]
    k: int
    largest: bool
    exclude: Tensor | None  # [N]
    query_labels: Tensor | None  # [N]
    reference_labels: Tensor | None  # [M]

    @property
    def filters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.exclude, self.query_labels, self.reference_labels


class Hinge(NamedTuple):
    """A hinge loss as backends get it, all checked: one matrix of each side, labelled rows."""

    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    bias: Tensor | None  # [1]
    query_labels: Tensor  # [N]
    reference_labels: Tensor  # [M]
    exclude: Tensor | None  # [N]
    margin: float
    hard_negatives: int | None


class HingeBackward(NamedTuple):
    """What its gradients follow from (E12)."""

    grad_positive: Tensor  # [N], wide
    grad_negative: Tensor  # [N], wide
    active: Tensor  # uint8 [N, ceil(M / 8)]
    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    query_labels: Tensor  # [N]
    reference_labels: Tensor  # [M]


def refuse(argument: str, expected: str, got: object, remedy: str, error: type[Exception] = ValueError) -> None:
    raise error(f"{argument}: expected {expected}, got {got}. {remedy}")


def check_score_inputs(query: Tensor, reference: Tensor, weight: Tensor, bias: object) -> None:
    """All pairs: query [..., N, D], reference [..., M, D], weight [D] or [C, D], bias number, [] or [C]."""
    _check_tensors(query, reference, weight, bias)
    for name, tensor in (("query", query), ("reference", reference)):
        if tensor.dim() < 2:
            refuse(name, "at least 2 dimensions [..., rows, D]", shape(tensor), "Add a row dimension: unsqueeze(0).")
    _check_dimension(query, reference, weight)
    _check_leading(query.shape[:-2], reference.shape[:-2], "[..., N, D]", "[..., M, D]")


def check_paired_inputs(query: Tensor, reference: Tensor, weight: Tensor, bias: object) -> None:
    """Row by row: query [..., D], reference [..., D], leading dimensions broadcast."""
    _check_tensors(query, reference, weight, bias)
    for name, tensor in (("query", query), ("reference", reference)):
        if tensor.dim() < 1:
            refuse(name, "at least 1 dimension [..., D]", shape(tensor), "Pass rows of embeddings.")
    _check_dimension(query, reference, weight)
    _check_leading(query.shape[:-1], reference.shape[:-1], "[..., D]", "[..., D]")


def check_matrix_inputs(query: Tensor, reference: Tensor, weight: Tensor, bias: object) -> None:
    """Search and loss take one matrix each and one head: query [N, D], reference [M, D], weight [D]."""
    check_score_inputs(query, reference, weight, bias)
    for name, tensor, dims in (("query", query, "[N, D]"), ("reference", reference, "[M, D]")):
        if tensor.dim() != 2:
            refuse(name, f"2 dimensions {dims}", shape(tensor), "Loop over or flatten the leading dimensions.")
    if weight.dim() != 1:
        refuse("weight", "one head [D]", shape(weight), "Call once per head: weight[c].")


def check_labels(name: str, labels: object, rows: int, device: torch.device) -> None:
    """Integer row labels (or row numbers) int64 [rows], on the embeddings' device."""
    if not isinstance(labels, Tensor):
        refuse(name, "an int64 tensor", type(labels).__name__, "Use torch.tensor(values).", TypeError)
    assert isinstance(labels, Tensor)
    if labels.dtype != torch.int64:
        refuse(name, "dtype int64", labels.dtype, "Use .long(): floats merge labels above 2**24.", TypeError)
    if labels.shape != (rows,):
        refuse(name, f"shape [{rows}], one entry a row", shape(labels), "Pass one label for each row.")
    if labels.device != device:
        refuse(name, f"device {device}", labels.device, "Move it beside the embeddings with .to(device).")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        refuse(name, "one of " + ", ".join(map(repr, choices)), repr(value), "Choose one of these.")


def check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        refuse(name, f"an integer of at least {least}", repr(value), "Pass a Python int.")


def check_number(name: str, value: object) -> None:
    if not isinstance(value, int | float):
        refuse(name, "a number", type(value).__name__, f"It is not learned: use float({name}).", TypeError)


def shape(tensor: Tensor) -> str:
    return f"shape {list(tensor.shape)}"


def _check_tensors(query: Tensor, reference: Tensor, weight: Tensor, bias: object) -> None:
    for name, value in (("query", query), ("reference", reference), ("weight", weight)):
        if not isinstance(value, Tensor):
            refuse(name, "a torch.Tensor", type(value).__name__, "Use torch.as_tensor(value).", TypeError)
        if value.layout != torch.strided:
            refuse(name, "a dense tensor", value.layout, "Use .to_dense().", TypeError)
    if query.dtype not in ACCUMULATE:
        names = ", ".join(str(dtype) for dtype in ACCUMULATE)
        refuse("query", f"one of {names}", query.dtype, "Convert it with .float().", TypeError)
    if reference.dtype != query.dtype:
        refuse("reference", f"query's dtype {query.dtype}", reference.dtype, "Convert one of them.", TypeError)
    if isinstance(bias, Tensor):
        _check_parameter("bias", bias, query)
        _check_device("bias", bias, query)
        heads = 1 if weight.dim() == 1 else weight.shape[0]
        allowed = "a number or shape []" + (f" or [{heads}]" if weight.dim() == 2 else "")
        if bias.dim() > weight.dim() - 1 or (bias.dim() == 1 and bias.shape[0] != heads):
            refuse("bias", f"{allowed} for weight {shape(weight)}", shape(bias), "Reshape it.")
    elif bias is not None and not isinstance(bias, int | float):
        refuse("bias", "None, a number or a tensor", type(bias).__name__, "Use float(bias).", TypeError)
    _check_parameter("weight", weight, query)


def _check_parameter(name: str, value: Tensor, query: Tensor) -> None:
    allowed = {query.dtype, ACCUMULATE[query.dtype]}
    if value.dtype not in allowed:
        expected = " or ".join(sorted(map(str, allowed)))
        refuse(name, f"{expected} beside {query.dtype} embeddings", value.dtype, "Convert it.", TypeError)


def _check_device(name: str, value: Tensor, query: Tensor) -> None:
    if value.device != query.device:
        refuse(name, f"query's device {query.device}", value.device, "Move it with .to(query.device).")


def _check_dimension(query: Tensor, reference: Tensor, weight: Tensor) -> None:
    if weight.dim() not in (1, 2):
        refuse("weight", "[D] or [C, D]", shape(weight), "One row of weights for each head.")
    for name, tensor in (("reference", reference), ("weight", weight)):
        if tensor.shape[-1] != query.shape[-1]:
            refuse(
                name,
                f"a last dimension of {query.shape[-1]} as in query",
                shape(tensor),
                "All three share the embedding dimension D.",
            )
    for name, tensor in (("reference", reference), ("weight", weight)):
        _check_device(name, tensor, query)


def _check_leading(left: torch.Size, right: torch.Size, query_form: str, reference_form: str) -> None:
    for a, b in zip(reversed(left), reversed(right), strict=False):
        if a != b and a != 1 and b != 1:
            refuse(
                "reference",
                f"leading dimensions of {reference_form} that broadcast with {list(left)} of query {query_form}",
                list(right),
                "They must be equal or 1, counted from the right, as in torch.cdist.",
            )
