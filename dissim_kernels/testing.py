"""What tests check results with: edge-case inputs, plain definitions, error bounds, assertions.

Expected values are the plain definitions below, evaluated on float64 copies of the inputs. Tolerances are not
constants: they are computed from the inputs, as the rounding bound (E9) and the same argument for each gradient.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from .contract import ACCUMULATE, Problem
from .dispatch import BACKENDS

#: Sizes just below and just above the sizes of vectors, register tiles and blocks.
SIZES = (0, 1, 31, 33, 127, 129)
#: Memory layouts of a matrix, as `with_layout` makes them.
LAYOUTS = ("contiguous", "transposed", "sliced", "unaligned", "repeated rows", "repeated columns")


def runnable_backends() -> list[str]:
    """Names of the backends that can run CPU tensors on this machine."""
    problem = Problem("score", torch.device("cpu"))
    return [name for name, module in BACKENDS.items() if module.unsupported_reason(problem) is None]


# --- inputs ------------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """The arguments of `fused_dissim_score`."""

    query: Tensor
    reference: Tensor
    weight: Tensor
    bias: Tensor | float | None = None

    def double(self) -> Inputs:
        """The same values in float64."""
        return Inputs._make(x.double() if isinstance(x, Tensor) else x for x in self)


def with_layout(values: Tensor, layout: str) -> Tensor:
    """`values` [..., R, D] in the memory layout `layout`, one of `LAYOUTS`.

    The layouts "repeated rows" and "repeated columns" repeat the first row or column with stride 0.
    """
    if layout == "transposed":
        return values.mT.contiguous().mT
    if layout == "sliced":
        return torch.stack((values, values + 9), -1).repeat_interleave(3, -3)[..., ::3, :, 0]
    if layout == "unaligned":
        return torch.cat((values.new_zeros(1), values.flatten()))[1:].view(values.shape)
    if layout == "repeated rows":
        return values[..., :1, :].expand(values.shape)
    if layout == "repeated columns":
        return values[..., :1].expand(values.shape)
    return values.contiguous()


def tied_inputs(rows: int, columns: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    """Small integers with weights that are multiples of 1/4: many scores tie, and scores and sums are exact."""
    rng = torch.Generator().manual_seed(seed)
    query, reference, weight = (
        torch.randint(-2, 3, size, generator=rng).to(dtype) for size in ((rows, dim), (columns, dim), (dim,))
    )
    return Inputs(query, reference, weight / 4, 0.5)


def offset_inputs(inputs: Inputs) -> Inputs:
    """`tied_inputs` scaled by 4 and moved by 512: still exact in half precision, but the max form (E7) cancels."""
    return inputs._replace(query=inputs.query * 4 + 512, reference=inputs.reference * 4 + 512)


def random_inputs(
    query: tuple[int, ...], reference: tuple[int, ...], heads: int | None = None,
    dtype: torch.dtype = torch.float32, bias: bool = True, seed: int = 0,
) -> Inputs:  # fmt: skip
    """Normally distributed inputs for `query` and `reference` of these shapes.

    The weight is [D] for `heads` None, else [heads, D].
    """
    rng = torch.Generator().manual_seed(seed)
    head = () if heads is None else (heads,)
    shapes = (query, reference, (*head, query[-1]), head)
    tensors = [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]
    return Inputs(tensors[0], tensors[1], tensors[2], tensors[3] if bias else None)


def edge_case_inputs(dtype: torch.dtype) -> dict[str, Inputs]:
    """Edge cases by name, each small enough to evaluate the definition in float64."""

    def shaped(query_shape, reference_shape, heads=None):
        return random_inputs(query_shape, reference_shape, heads, dtype)

    plain = shaped((33, 31), (35, 31))
    query, reference, weight, bias = plain
    diagonal = (torch.arange(6) * 5,) * 2
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1.0], dtype=dtype)
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max / 1024
    cases = {
        "ties": tied_inputs(31, 33, 17, dtype),
        "query is reference": plain._replace(reference=query),
        "negative weight, zeros in it": plain._replace(weight=-weight.abs() * (torch.arange(31) % 3 > 0)),
        "zero weight": plain._replace(weight=weight * 0),
        "large common offset": plain._replace(query=query + 1000, reference=reference + 1000),
        "nan and inf in query": plain._replace(query=query.index_put(diagonal, special)),
        "nan and inf in reference": plain._replace(reference=reference.index_put(diagonal, special)),
        "tiny": plain._replace(query=query * tiny, reference=reference * tiny),
        "huge": plain._replace(query=query * huge, reference=reference * huge),
        "tiny beside huge": plain._replace(query=query * tiny, reference=reference * huge),
        "zeros of both signs": plain._replace(query=query * 0, reference=-reference.abs() * 0),
        "no bias": plain._replace(bias=None),
        "number as bias": plain._replace(bias=-1.25),
        "number as bias for heads": shaped((9, 20), (70, 20), heads=3)._replace(bias=2),
        "0-d bias for heads": shaped((9, 20), (70, 20), heads=3)._replace(bias=bias),
        "heads": shaped((37, 31), (66, 31), heads=3),
        "one head of [1, D]": shaped((5, 31), (66, 31), heads=1),
        "no heads": shaped((5, 31), (6, 31), heads=0),
        "batch": shaped((3, 9, 20), (3, 18, 20), heads=2),
        "large batch": shaped((70, 2, 5), (70, 3, 5)),
        "pairs": shaped((70, 1, 33), (70, 1, 33), heads=2),
        "batch broadcast": shaped((2, 1, 9, 20), (3, 18, 20)),
        "one query set, many references": shaped((9, 20), (3, 18, 20)),
        "empty batch": shaped((0, 9, 20), (0, 18, 20)),
        "one by one": shaped((1, 1), (1, 1)),
        "many queries": shaped((515, 40), (70, 40)),
        "many references": shaped((2, 300), (700, 300)),
        "few queries": shaped((7, 150), (70, 150), heads=2),
        "few queries, strided references": plain._replace(
            query=query[:7], reference=with_layout(reference, "transposed")
        ),
        "few queries, ties": tied_inputs(7, 33, 37, dtype),
        "few queries equal to references": plain._replace(query=reference[:7]),
        "few queries near 1000": plain._replace(query=query[:7] + 1000, reference=reference + 1000),
        "few queries with nan and inf": plain._replace(query=query.index_put(diagonal, special)[:7]),
        "few references": shaped((700, 300), (3, 300), heads=2),
        "several panels": shaped((19, 640), (300, 640)),
        "several gradient tiles": shaped((129, 16), (257, 16)),
    }
    cases |= {f"long: {name}": inputs for name, inputs in _long_inputs(dtype).items()}
    for layout in LAYOUTS:
        cases[f"query {layout}"] = plain._replace(query=with_layout(query, layout))
        cases[f"reference {layout}"] = plain._replace(reference=with_layout(reference, layout))
    empty, thin = ("0x5x7", "5x0x7", "5x7x0", "0x0x0"), ("1x129x33", "127x1x129", "31x33x1", "129x127x1")
    for sizes in empty + thin:
        n, m, d = map(int, sizes.split("x"))
        cases[sizes] = shaped((n, d), (m, d))
    if ACCUMULATE[dtype] != dtype:
        acc = [t.to(ACCUMULATE[dtype]) * 1.001 for t in (weight, bias)]
        cases["weight and bias in the accumulator dtype"] = Inputs(query, reference, *acc)
    return cases


def _long_inputs(dtype: torch.dtype) -> dict[str, Inputs]:
    """Inputs with enough dimensions for the max form (E7) on the CPU.

    The number of weights of a sign is no multiple of the vector length.
    """
    plain = random_inputs((34, 150), (70, 150), dtype=dtype)
    query, reference, weight, _ = plain
    weight = weight.abs().where(torch.arange(150) % 3 > 0, -weight.abs())
    rows, columns = torch.arange(6) * 5, torch.arange(6) * 17
    special = torch.tensor([math.nan, math.inf, -math.inf, math.inf, 0.0, -0.0], dtype=dtype)
    close = reference.clone()
    close[rows] = query[rows] * (1 + 2 * torch.finfo(dtype).eps)
    huge = torch.arange(150).eq(1) * torch.finfo(dtype).max / 4
    return {
        "both signs": plain._replace(weight=weight),
        "one sign": plain._replace(weight=-weight.abs()),
        "the other sign and zeros": plain._replace(weight=weight.abs() * (torch.arange(150) % 3 > 0)),
        "heads": random_inputs((18, 149), (140, 149), 3, dtype),
        "ties": tied_inputs(34, 70, 149, dtype),
        "strides": plain._replace(
            query=with_layout(query, "transposed"), reference=with_layout(reference, "sliced"),
        ),
        "repeats": plain._replace(
            query=with_layout(query, "repeated columns"), reference=with_layout(reference, "repeated rows"),
        ),
        "references close to queries": plain._replace(reference=close),
        "query is reference": plain._replace(reference=query),
        "large common offset": plain._replace(query=query + 1000, reference=reference + 1000),
        "tiny": plain._replace(query=query * 1e-40, reference=reference * 1e-40),
        "nan and inf in query": plain._replace(query=query.index_put((rows, columns), special)),
        "nan and inf in reference": plain._replace(reference=reference.index_put((rows, columns), special)),
        "a weighted value overflows": plain._replace(
            query=query.where(huge == 0, huge.to(dtype)), reference=reference.where(huge == 0, huge.to(dtype)),
            weight=weight.index_fill(0, torch.tensor(1), 8),
        ),
    }  # fmt: skip


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """A context in which torch.empty returns NaN, so that elements a kernel does not write are found.

    It enables torch's deterministic mode. torch operators without a deterministic CUDA version only warn there.
    """
    settings: Any = torch.utils.deterministic
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        settings.fill_uninitialized_memory = was_filled


# --- definitions -------------------------------------------------------------------------------------------------


def plain_score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | float | None = None) -> Tensor:
    """The score (E1) as its definition states it, with the [..., N, M, D] tensor of differences.

    query [..., N, D], reference [..., M, D], weight [D] or [C, D].
    """
    scores = linear((query.unsqueeze(-2) - reference.unsqueeze(-3)).abs(), weight)
    return scores if bias is None else scores + bias


def plain_candidates(
    rows: int, columns: int, exclude_index: Tensor | None = None,
    query_labels: Tensor | None = None, reference_labels: Tensor | None = None, among: str = "different",
) -> Tensor:  # fmt: skip
    """The mask [N, M] of the references that count for each query."""
    allowed = torch.ones(rows, columns, dtype=torch.bool)
    if exclude_index is not None:
        allowed &= exclude_index[:, None] != torch.arange(columns)
    if query_labels is not None and reference_labels is not None and among != "all":
        allowed &= (query_labels[:, None] == reference_labels) == (among == "same")
    return allowed


def plain_hinge_weights(
    scores: Tensor, query_labels: Tensor, reference_labels: Tensor, *, balance: str = "pairs",
    num_hard_negatives: int | None = None, exclude_index: Tensor | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """The weight [N, M] of each pair's hinge in `fused_dissim_hinge_loss`, 0 for an excluded pair."""
    same = query_labels[:, None] == reference_labels
    kept = plain_candidates(scores.shape[0], scores.shape[1], exclude_index)
    if num_hard_negatives is not None:
        negatives = scores.detach().masked_fill(same | ~kept, -math.inf)
        rank = negatives.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
        kept = kept & (same | (rank < num_hard_negatives))
    groups = [kept]
    if balance == "classes":
        groups = [group for group in (same & kept, ~same & kept) if group.any()]
    weights = torch.zeros(scores.shape, dtype=torch.float64)
    for group in groups:
        weights += group.double() / group.sum().clamp(min=1)
    weights /= max(1, len(groups))
    return weights.to(scores.dtype) * {"mean": 1, "sum": int(kept.sum()), "none": scores.shape[0]}[reduction]


def plain_hinge_loss(
    scores: Tensor, query_labels: Tensor, reference_labels: Tensor, *, margin: float = 1.0, **choices: Any
) -> Tensor:
    """`fused_dissim_hinge_loss` computed from the full score matrix [N, M]. The gradient of relu at 0 is 0 (E12)."""
    weights = plain_hinge_weights(scores, query_labels, reference_labels, **choices)
    signed = torch.where(query_labels[:, None] == reference_labels, scores, -scores)
    rows = (torch.where(weights > 0, torch.relu(margin - signed), 0) * weights).sum(1)
    return rows if choices.get("reduction") == "none" else rows.sum()


# --- rounding bounds -----------------------------------------------------------------------------------------------


def relative_rounding_error(operations: int, dtype: torch.dtype) -> float:
    """The bound n u / (1 - n u) on the relative error of n = `operations` roundings in a row (Higham's gamma_n)."""
    total = operations * torch.finfo(dtype).eps / 2
    return total / (1 - total)


def score_bound(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | float | None = None) -> Tensor:
    """The rounding bound (E9) of each score, in float64.

    It allows D + 3 roundings of the absolute terms in the accumulator dtype and one of the result in its own dtype.
    """
    dtype, dim = query.dtype, query.shape[-1]
    exact = Inputs(query, reference, weight, bias).double()
    size: Any = exact.bias if exact.bias is None else abs(exact.bias)
    terms = plain_score(exact.query, exact.reference, exact.weight.abs(), size)
    return _bound(terms, plain_score(*exact).abs(), dim + 3, dtype, dtype)


def gradient_bounds(
    grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | float | None = None, extra: int = 0
) -> list[Tensor]:
    """Bounds of the four gradients (E2) for the upstream gradient `grad`, with the shapes of the inputs.

    extra: the roundings in the accumulator dtype that `grad` itself has been through.

    The gradient of a row sums one term for each row of the other side and each head. The gradient of the weight sums
    the terms of both sides relative to the mean of the references; the bound holds for every way to compute it.
    """
    q, r, w, g = (x.detach().double() for x in (query, reference, weight, grad))
    g, heads = (g.unsqueeze(-1), w.unsqueeze(0)) if weight.dim() == 1 else (g, w)
    g = g.abs()
    unequal = (q.unsqueeze(-2) != r.unsqueeze(-3)).double()
    pair_terms = (g @ heads.abs()) * unequal
    lead, (rows, columns) = math.prod(g.shape[:-3]), g.shape[-3:-1]
    center = r.mean(-2, keepdim=True).nan_to_num(0, 0, 0)
    query_side = _last_two(g.sum(-2).mT @ (q - center).abs())
    reference_side = _last_two(g.sum(-3).mT @ (r - center).abs())
    bias_terms = g.flatten(0, -2).sum(0)
    if weight.dim() == 1:
        query_side, reference_side, bias_terms = query_side[0], reference_side[0], bias_terms[0]
    if not isinstance(bias, Tensor) or bias.dim() == 0:
        bias_terms = bias_terms.sum()
    roundings = len(heads) + lead + 4 + extra
    return [
        # 2: the gradients of broadcast rows are rounded to the result's dtype before they are summed.
        _bound(terms, 2 * terms, additions + roundings, query.dtype, out)
        for terms, additions, out in (
            (pair_terms.sum(-2).sum_to_size(query.shape), columns, query.dtype),
            (pair_terms.sum(-3).sum_to_size(reference.shape), rows, query.dtype),
            (query_side + reference_side, rows + columns, weight.dtype),
            (bias_terms, rows + columns, bias.dtype if isinstance(bias, Tensor) else weight.dtype),
        )
    ]


class LogSumExpBounds(NamedTuple):
    """Bounds of a log-sum-exp [N] and of its gradients for query, reference, weight, bias and scale (E15)."""

    value: Tensor
    query: Tensor
    reference: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor


def plain_logsumexp(scores: Tensor, kept: Tensor, scale: Tensor | float) -> Tensor:
    """`fused_dissim_logsumexp` from the full score matrix [N, M] and the pairs that are kept, bool [N, M]."""
    return torch.where(kept, scale * scores, -math.inf).logsumexp(1)


def logsumexp_bounds(
    grad: Tensor, kept: Tensor, scale: float, query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor
) -> LogSumExpBounds:
    """E15 for the upstream `grad` [N], in float64."""
    inputs = Inputs(query, reference, weight, bias)
    acc, (rows, columns) = ACCUMULATE[query.dtype], kept.shape
    u = relative_rounding_error(1, acc)
    accumulated = Inputs(query.to(acc), reference.to(acc), weight.to(acc), bias.to(acc))
    scores = plain_score(*inputs.double())
    logits = scale * scores
    logit_error = abs(scale) * score_bound(*accumulated) + u * logits.abs()
    value = plain_logsumexp(scores, kept, scale)
    row_max, row_error = (pad(torch.where(kept, x, 0), (0, 1)).amax(1) for x in (logits.abs(), logit_error))
    size = torch.where(value.isfinite(), value.abs() + row_max, 0)
    additions = columns + 48 + math.ceil(math.log(columns + 1))
    value_error = row_error + relative_rounding_error(additions, acc) + 3 * u * size

    share = torch.where(kept, (logits - value[:, None]).exp(), 0).nan_to_num(0)
    exponent_error = logit_error + value_error[:, None] + 2 * u * (logits.abs() + size[:, None])
    share_error = share * (exponent_error.expm1() + 6 * u)
    dropped = share.clamp(max=1.01 * u)  # of a pair, if it is dropped
    upstream = (grad.double() * scale).abs()
    row_dropped = upstream * dropped.sum(1).clamp(max=1.01 * u)
    g, g_error = upstream[:, None] * share, upstream[:, None] * share_error
    q, r, w = (x.double() for x in (query, reference, weight))
    unequal, difference = (q[:, None] != r).double(), (q[:, None] - r).abs()
    bounds = gradient_bounds(g + g_error, *inputs, extra=2)
    bounds[0] = (
        bounds[0] + (g_error[:, :, None] * w.abs() * unequal).sum(1) + (upstream * row_dropped)[:, None] * w.abs()
    )
    reference_error = g_error + upstream[:, None] * dropped
    bounds[1] = bounds[1] + (reference_error[:, :, None] * w.abs() * unequal).sum(0)
    max_difference = pad(difference, (0, 0, 0, 1)).amax(1)
    bounds[2] = bounds[2] + (g_error[:, :, None] * difference).sum((0, 1)) + row_dropped @ max_difference
    bounds[3] = bounds[3] + g_error.sum() + relative_rounding_error(rows + 8, acc) * upstream.sum()
    mean_error = (share_error * scores.abs() + share * score_bound(*accumulated)).sum(1)
    mean_error = mean_error + relative_rounding_error(columns + 48, acc) * (share * scores.abs()).sum(1)
    mean_error = mean_error + relative_rounding_error(rows + 8, acc) * (share * scores.abs()).sum(1)
    scale_error = (grad.double().abs() * mean_error).sum()
    grad_query, grad_reference, grad_weight, grad_bias = bounds
    return LogSumExpBounds(value_error, grad_query, grad_reference, grad_weight, grad_bias, scale_error)


def _last_two(x: Tensor) -> Tensor:
    return x.sum_to_size(x.shape[-2:])


def _bound(terms: Tensor, result: Tensor, operations: int, dtype: torch.dtype, out: torch.dtype) -> Tensor:
    """The error of `operations` roundings in the accumulator dtype of `dtype` and a last one, in the dtype `out`.

    terms: the sum of the absolute terms; result: the absolute value that is rounded last.
    """
    acc, last = ACCUMULATE[dtype], relative_rounding_error(1, out)
    underflow = operations * torch.finfo(acc).smallest_normal + torch.finfo(out).smallest_normal * last
    return relative_rounding_error(operations, acc) * terms * (1 + last) + last * result + underflow


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor, what: str = "result") -> None:
    """Asserts |actual - expected| <= bound for every element.

    Where `expected` in the dtype of `actual` is NaN or infinite, `actual` must be the same.
    """
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    rounded, error = expected.to(actual.dtype), (actual.double() - expected.double()).abs()
    same = (actual == rounded) | (actual.isnan() & rounded.isnan())
    bad = ~torch.where(rounded.isfinite(), error <= bound, same)
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        got, wanted, limit = actual[at].item(), expected[at].item(), bound.expand(bad.shape)[at].item()
        raise AssertionError(f"{what}{list(at)}: got {got}, expected {wanted} within {limit:.2e}; {bad.sum()} such")


def assert_topk_equal(
    scores: Tensor, indices: Tensor, exact: Tensor, bound: Tensor, allowed: Tensor | None = None, largest: bool = True
) -> None:
    """Asserts that a top-k result [N, k] is right for the float64 scores `exact` [N, M], with errors up to `bound`.

    - Each row has distinct indices of references that `allowed` [N, M] permits, and their scores.
    - The best score comes first and NaN last.
    - No permitted reference that is missing is better than a returned one by more than both bounds.
    - Where `bound` is 0 everywhere (exact arithmetic), equal scores are ordered by the lower index.
    """
    rows, k = indices.shape
    bound = torch.where(exact.isfinite(), bound, 0)
    allowed = torch.ones_like(exact, dtype=torch.bool) if allowed is None else allowed
    assert scores.shape == (rows, k) and indices.dtype == torch.int64
    assert ((indices >= 0) & (indices < exact.shape[1])).all(), "an index is outside the reference"
    returned = torch.zeros_like(allowed).scatter_(1, indices, True)
    assert (returned.sum(1) == k).all(), "an index is returned twice"
    assert not (returned & ~allowed).any(), "an excluded reference is returned"
    assert_within(scores, exact.gather(1, indices), bound.gather(1, indices), "scores")
    sign = 1.0 if largest else -1.0
    low, high = ((sign * exact + side * bound).nan_to_num(-math.inf, math.inf, -math.inf) for side in (-1, 1))
    returned_low, returned_high = low.gather(1, indices), high.gather(1, indices)
    if k == 0:
        return
    assert (returned_high[:, :-1] >= returned_low[:, 1:]).all(), "the best score is not first"
    best_missing = torch.where(allowed & ~returned, low, -math.inf).amax(1)
    assert (returned_high.amin(1) >= best_missing).all(), "a better reference is missing"
    is_nan = exact.isnan()
    number_is_missing = (allowed & ~returned & ~is_nan).any(1)
    returned_nan = is_nan.gather(1, indices)
    nan_before_number = (returned_nan[:, :-1] & ~returned_nan[:, 1:]).any()
    nan_for_number = (returned_nan.any(1) & number_is_missing).any()
    assert not nan_before_number and not nan_for_number, "NaN ranks above a number"
    if not bound.any():
        keys = (sign * exact).masked_fill(is_nan, -math.inf).masked_fill(~allowed, -math.inf)
        order = torch.where(allowed, is_nan.long(), 2).sort(dim=1, stable=True).indices
        order = order.gather(1, keys.gather(1, order).sort(dim=1, stable=True, descending=True).indices)
        assert torch.equal(indices, order[:, :k]), "equal scores are not ordered by the lower index"
