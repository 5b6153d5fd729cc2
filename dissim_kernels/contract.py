"""Input validation: what every operator accepts in shapes and dtypes, and the text of every error.

An error names the argument, what was expected, what was given and how to fix it. The checks do not read data, so they
run the same under FakeTensor, torch.compile and torch.export.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

#: embedding dtype -> accumulator dtype. A new dtype is one row here and one in csrc/dissim.h.
ACCUMULATE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}

BALANCES = ("pairs", "classes")
REDUCTIONS = ("mean", "sum", "none")
OPERATOR_REMEDY = "Call the public functions of dissim_kernels, which convert their arguments."
#: Which references count for a query, by label.
AMONG = ("different", "same", "all")
#: Layout of the 8-bit codes (csrc/dissim.h): rows per panel and code columns per group.
PANEL, GROUP = 16, 8


class Problem(NamedTuple):
    """What decides whether a backend supports a call (see dispatch.py)."""

    operation: str  # "score", "topk", "quantized_topk", "clustered_topk", "quantize", "hinge", "logsumexp" or "rank"
    device: torch.device  # a specific device, because the devices of one machine may differ


class Filter(NamedTuple):
    """Which references count for each query: its candidates."""

    exclude_index: Tensor | None  # [N]: a reference that does not count, -1 for none
    query_labels: Tensor | None  # [N]
    reference_labels: Tensor | None  # [M]
    among_same: bool  # with labels: the references of the query's label count; otherwise those of other labels


def _filter(given: TopKArguments | LogSumExpArguments) -> Filter:
    labels = (None, None) if given.among == "all" else (given.query_labels, given.reference_labels)
    return Filter(given.exclude_index, *labels, given.among == "same")


class TopKArguments(NamedTuple):
    """The checked arguments of top-k, as backends receive them."""

    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    bias: Tensor | None  # [1]
    k: int
    largest: bool
    exclude_index: Tensor | None  # [N]
    query_labels: Tensor | None  # [N]
    reference_labels: Tensor | None  # [M]
    among: str = "different"  # of AMONG

    @property
    def filter(self) -> Filter:
        return _filter(self)


class HingeArguments(NamedTuple):
    """The checked arguments of the hinge loss, as backends receive them."""

    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    bias: Tensor | None  # [1]
    query_labels: Tensor  # [N]
    reference_labels: Tensor  # [M]
    exclude_index: Tensor | None  # [N]
    margin: float
    num_hard_negatives: int | None


class HingeBackwardArguments(NamedTuple):
    """The checked arguments of the hinge loss's backward (E12), as backends receive them."""

    grad_positive: Tensor  # [N], accumulator dtype
    grad_negative: Tensor  # [N], accumulator dtype
    active: Tensor  # uint8 [N, ceil(M / 8)]
    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    query_labels: Tensor  # [N]
    reference_labels: Tensor  # [M]


class LogSumExpArguments(NamedTuple):
    """A log-sum-exp as backends get it, all checked: one matrix of each side."""

    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    bias: Tensor | None  # [1]
    scale: Tensor  # [1], accumulator dtype
    query_labels: Tensor | None  # [N]
    reference_labels: Tensor | None  # [M]
    exclude_index: Tensor | None  # [N]
    among: str  # of AMONG

    @property
    def filter(self) -> Filter:
        return _filter(self)


class LogSumExpBackwardArguments(NamedTuple):
    """What its gradients follow from (E15)."""

    grad: Tensor  # [N], accumulator dtype
    value: Tensor  # [N], accumulator dtype: the log-sum-exp
    active: Tensor  # uint8 [N, ceil(M / 8)]
    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    bias: Tensor | None  # [1]
    scale: Tensor  # [1], accumulator dtype


class RankArguments(NamedTuple):
    """A count of ranks as backends get it, all checked: lists of pairs, each query's best first."""

    query: Tensor  # [N, D]
    reference: Tensor  # [M, D]
    weight: Tensor  # [D]
    bias: Tensor | None  # [1]
    offsets: Tensor  # int64 [N + 1]
    indices: Tensor  # int64 [P]
    scores: Tensor  # [P], accumulator dtype


def raise_argument_error(
    argument: str, expected: str, got: object, remedy: str, error: type[Exception] = ValueError
) -> NoReturn:
    raise error(f"{argument}: expected {expected}, got {got}. {remedy}")


def check_score_inputs(query: Tensor, reference: Tensor, weight: Tensor, bias: object) -> None:
    """All pairs: query [..., N, D], reference [..., M, D], weight [D] or [C, D], bias number, [] or [C]."""
    _check_tensors(query, reference, weight, bias)
    for name, tensor in (("query", query), ("reference", reference)):
        if tensor.dim() < 2:
            raise_argument_error(
                name, "at least 2 dimensions [..., rows, D]", shape(tensor), "Add a row dimension: unsqueeze(0)."
            )
    _check_dimension(query, reference, weight)
    _check_leading(query.shape[:-2], reference.shape[:-2], "[..., N, D]", "[..., M, D]")


def check_paired_inputs(query: Tensor, reference: Tensor, weight: Tensor, bias: object) -> None:
    """Row-aligned pairs: query [..., D], reference [..., D], leading dimensions broadcast."""
    _check_tensors(query, reference, weight, bias)
    for name, tensor in (("query", query), ("reference", reference)):
        if tensor.dim() < 1:
            raise_argument_error(name, "at least 1 dimension [..., D]", shape(tensor), "Pass rows of embeddings.")
    _check_dimension(query, reference, weight)
    _check_leading(query.shape[:-1], reference.shape[:-1], "[..., D]", "[..., D]")


def check_matrix_inputs(query: Tensor, reference: Tensor, weight: Tensor, bias: object) -> None:
    """Without a batch and with one head: query [N, D], reference [M, D], weight [D]."""
    check_score_inputs(query, reference, weight, bias)
    for name, tensor, dims in (("query", query, "[N, D]"), ("reference", reference, "[M, D]")):
        if tensor.dim() != 2:
            raise_argument_error(
                name, f"2 dimensions {dims}", shape(tensor), "Loop over or flatten the leading dimensions."
            )
    if weight.dim() != 1:
        raise_argument_error("weight", "one head [D]", shape(weight), "Call once per head: weight[c].")


def check_reference_inputs(reference: Tensor, weight: Tensor) -> None:
    """References to be prepared for a search: reference [M, D], weight [D]."""
    for name, value in (("reference", reference), ("weight", weight)):
        check_tensor(name, value)
    _check_embeddings("reference", reference)
    _check_parameter("weight", weight, reference)
    if reference.dim() != 2:
        raise_argument_error("reference", "2 dimensions [M, D]", shape(reference), "Prepare one matrix at a time.")
    if weight.shape != reference.shape[1:]:
        raise_argument_error(
            "weight", f"shape [{reference.shape[1]}] as D of reference", shape(weight), "Pass one head: weight[c]."
        )
    _check_device("weight", weight, reference, "reference")


def check_filters(
    query: Tensor,
    reference: Tensor,
    exclude_index: Tensor | None,
    query_labels: Tensor | None,
    reference_labels: Tensor | None,
) -> None:
    """Filters of the references: each None or int64 [N], [N] and [M]; labels of both sides or of neither."""
    if (query_labels is None) != (reference_labels is None):
        missing = "query_labels" if query_labels is None else "reference_labels"
        raise_argument_error(missing, "labels, since the other side has them", None, "Pass both or neither.")
    for name, labels, rows in (
        ("exclude_index", exclude_index, query.shape[0]),
        ("query_labels", query_labels, query.shape[0]),
        ("reference_labels", reference_labels, reference.shape[0]),
    ):
        if labels is not None:
            check_labels(name, labels, rows, query.device)


def check_labels(name: str, labels: object, rows: int | None, device: torch.device) -> None:
    """Integer row labels (or row numbers) int64 [rows], on the embeddings' device; rows None is any number."""
    if not isinstance(labels, Tensor):
        raise_argument_error(name, "an int64 tensor", type(labels).__name__, "Use torch.tensor(values).", TypeError)
    if labels.layout != torch.strided:
        raise_argument_error(name, "a dense tensor", labels.layout, "Use .to_dense().", TypeError)
    if labels.dtype != torch.int64:
        raise_argument_error(
            name, "dtype int64", labels.dtype, "Use .long(): floats merge labels above 2**24.", TypeError
        )
    if rows is None and labels.dim() != 1:
        raise_argument_error(name, "1 dimension", shape(labels), "Use .reshape(-1).")
    if rows is not None and labels.shape != (rows,):
        raise_argument_error(
            name, f"shape [{rows}], one entry per row", shape(labels), "Pass one label for each row."
        )
    if labels.device != device:
        raise_argument_error(
            name, f"device {device}", labels.device, "Move it to the embeddings' device with .to(device)."
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise_argument_error(name, "one of " + ", ".join(map(repr, choices)), repr(value), "Choose one of these.")


def check_count(name: str, value: object, minimum: int) -> None:
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool) or value < minimum:
        raise_argument_error(name, f"an integer of at least {minimum}", repr(value), "Pass a Python int.")
    if value >= 2**63:
        raise_argument_error(name, "an integer below 2**63", repr(value), "Pass a smaller one.")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise_argument_error(name, "True or False", repr(value), "Pass a bool.", TypeError)


def check_number(name: str, value: object) -> None:
    """A number that fits in float64, which an integer may not."""
    if not isinstance(value, int | float):
        raise_argument_error(
            name, "a number", type(value).__name__, f"It is not a parameter: use float({name}).", TypeError
        )
    _check_range(name, value)


def _check_range(name: str, value: int | float) -> None:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise_argument_error(
            name, "a number in the range of float64", "a larger one", "Use a float, which can be inf."
        )


def check_pair_counts(counts: object) -> None:
    """Two numbers or 0-d tensors, or both in one tensor, or None. The values of tensors are not read."""
    if counts is None:
        return
    remedy = "Pass (positives, negatives)."
    if not isinstance(counts, tuple | list | Tensor):
        raise_argument_error("pair_counts", "two counts", type(counts).__name__, remedy, TypeError)
    if isinstance(counts, Tensor) and not counts.dim():
        raise_argument_error("pair_counts", "two counts", shape(counts), remedy)
    if len(counts) != 2:
        raise_argument_error("pair_counts", "two counts", len(counts), remedy)
    for count in counts:
        if isinstance(count, Tensor):
            if count.is_complex():
                raise_argument_error("pair_counts", "real numbers", count.dtype, remedy, TypeError)
            if count.dim():
                raise_argument_error(
                    "pair_counts", "numbers or tensors of shape []", shape(count), "Use count.sum()."
                )
        elif not isinstance(count, Real):
            raise_argument_error("pair_counts", "a number", type(count).__name__, remedy, TypeError)
        elif not count >= 0:  # type: ignore[operator]  # typeshed has no comparison of Real
            raise_argument_error("pair_counts", "numbers of at least 0", count, remedy)
        elif count >= 2**63:  # type: ignore[operator]
            raise_argument_error("pair_counts", "numbers below 2**63", "a larger one", remedy)


def check_cameras(
    query: Tensor, reference: Tensor, query_cameras: Tensor | None, reference_cameras: Tensor | None
) -> None:
    """int64 [N] and [M], or neither."""
    if (query_cameras is None) != (reference_cameras is None):
        missing = "query_cameras" if query_cameras is None else "reference_cameras"
        raise_argument_error(missing, "cameras, since the other side has them", None, "Pass both or neither.")
    if query_cameras is not None:
        check_labels("query_cameras", query_cameras, query.shape[0], query.device)
        check_labels("reference_cameras", reference_cameras, reference.shape[0], query.device)


def check_positives(query: Tensor, offsets: Tensor | None, indices: Tensor | None, scores: Tensor | None) -> None:
    """Lists of matches in compressed-row form, or none: values of offsets are checked too."""
    given = {"positive_offsets": offsets, "positive_indices": indices, "positive_scores": scores}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise_argument_error(missing[0], "a tensor, since the other two are given", None, "Pass all three or none.")
    assert offsets is not None and indices is not None and scores is not None
    check_labels("positive_offsets", offsets, query.shape[0] + 1, query.device)
    check_labels("positive_indices", indices, None, query.device)
    check_operand("positive_scores", scores, (ACCUMULATE[query.dtype],), (len(indices),), query.device)
    check_offsets("positive_offsets", offsets, len(indices))
    if bool(scores.isnan().any()):
        raise_argument_error("positive_scores", "numbers", "NaN", "A NaN score has no rank.")


def check_offsets(name: str, offsets: Tensor, pairs: int) -> None:
    """Reads their values, which must ascend from 0 to the number of pairs."""
    ends = int(offsets[0]), int(offsets[-1])
    if ends == (0, pairs) and bool((offsets.diff() >= 0).all()):
        return
    got = "numbers that descend" if ends == (0, pairs) else f"{ends[0]} to {ends[1]}"
    raise_argument_error(name, f"numbers that ascend from 0 to {pairs}, the pairs", got, "Pass those of ScoredRanks.")


def check_among(among: object, query_labels: Tensor | None, labels_needed: Sequence[str]) -> None:
    """One of AMONG, with labels where it is one of `labels_needed`."""
    check_choice("among", among, AMONG)
    if among in labels_needed and query_labels is None:
        raise_argument_error("query_labels", f"labels, for among={among!r}", None, "Pass labels, or among='all'.")


def check_scale(scale: object, query: Tensor) -> None:
    """A number, or a 0-d tensor in the dtype of query or its accumulator."""
    if not isinstance(scale, Tensor):
        return check_number("scale", scale)
    check_tensor("scale", scale)
    _check_parameter("scale", scale, query)
    _check_device("scale", scale, query, "query")
    if scale.dim():
        raise_argument_error("scale", "a number or shape []", shape(scale), "Reshape it.")


def shape(tensor: Tensor) -> str:
    return f"shape {list(tensor.shape)}"


def _check_tensors(query: Tensor, reference: Tensor, weight: Tensor, bias: object) -> None:
    for name, value in (("query", query), ("reference", reference), ("weight", weight)):
        check_tensor(name, value)
    _check_embeddings("query", query)
    if reference.dtype != query.dtype:
        raise_argument_error(
            "reference", f"query's dtype {query.dtype}", reference.dtype, "Convert one of them.", TypeError
        )
    if isinstance(bias, Tensor):
        check_tensor("bias", bias)
        _check_parameter("bias", bias, query)
        _check_device("bias", bias, query, "query")
        heads = 1 if weight.dim() == 1 else weight.shape[0]
        allowed = "a number or shape []" + (f" or [{heads}]" if weight.dim() == 2 else "")
        if bias.dim() > weight.dim() - 1 or (bias.dim() == 1 and bias.shape[0] != heads):
            raise_argument_error("bias", f"{allowed} for weight {shape(weight)}", shape(bias), "Reshape it.")
    elif bias is not None and not isinstance(bias, int | float):
        raise_argument_error("bias", "None, a number or a tensor", type(bias).__name__, "Use float(bias).", TypeError)
    elif bias is not None:
        _check_range("bias", bias)
    _check_parameter("weight", weight, query)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise_argument_error(name, "a torch.Tensor", type(value).__name__, "Use torch.as_tensor(value).", TypeError)
    if value.layout != torch.strided:
        raise_argument_error(name, "a dense tensor", value.layout, "Use .to_dense().", TypeError)


def _check_embeddings(name: str, rows: Tensor) -> None:
    if rows.dtype not in ACCUMULATE:
        names = ", ".join(str(dtype) for dtype in ACCUMULATE)
        raise_argument_error(name, f"one of {names}", rows.dtype, "Convert it with .float().", TypeError)


def _check_parameter(name: str, value: Tensor, rows: Tensor) -> None:
    allowed = {rows.dtype, ACCUMULATE[rows.dtype]}
    if value.dtype not in allowed:
        expected = " or ".join(sorted(map(str, allowed)))
        raise_argument_error(name, f"{expected} with {rows.dtype} embeddings", value.dtype, "Convert it.", TypeError)


def _check_device(name: str, value: Tensor, other: Tensor, owner: str) -> None:
    if value.device != other.device:
        raise_argument_error(
            name, f"{owner}'s device {other.device}", value.device, f"Move it with .to({owner}.device)."
        )


def _check_dimension(query: Tensor, reference: Tensor, weight: Tensor) -> None:
    if weight.dim() not in (1, 2):
        raise_argument_error("weight", "[D] or [C, D]", shape(weight), "Pass one row of weights for each head.")
    for name, tensor in (("reference", reference), ("weight", weight)):
        if tensor.shape[-1] != query.shape[-1]:
            raise_argument_error(
                name,
                f"a last dimension of {query.shape[-1]} as in query",
                shape(tensor),
                "All three share the embedding dimension D.",
            )
    for name, tensor in (("reference", reference), ("weight", weight)):
        _check_device(name, tensor, query, "query")


def _check_leading(left: torch.Size, right: torch.Size, query_form: str, reference_form: str) -> None:
    for a, b in zip(reversed(left), reversed(right), strict=False):
        if a != b and a != 1 and b != 1:
            raise_argument_error(
                "reference",
                f"leading dimensions of {reference_form} that broadcast with {list(left)} of query {query_form}",
                list(right),
                "They must be equal or 1, counted from the right, as in torch.cdist.",
            )


def check_operand(
    name: str,
    tensor: Tensor,
    dtypes: tuple[torch.dtype, ...],
    sizes: Sequence[int | None],
    device: torch.device,
) -> None:
    """A dense tensor with one of the dtypes and these sizes, where None is any size."""
    check_tensor(name, tensor)
    matches = tensor.dtype in dtypes and tensor.device == device and tensor.dim() == len(sizes)
    if matches and all(size is None or size == given for size, given in zip(sizes, tensor.shape, strict=True)):
        return
    expected_dtypes = " or ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(dtypes))
    form = ", ".join("any" if size is None else str(size) for size in sizes)
    got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
    raise_argument_error(name, f"{expected_dtypes} [{form}] on {device}", got, OPERATOR_REMEDY)
