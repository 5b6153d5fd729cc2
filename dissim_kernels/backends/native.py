"""The compiled kernels of csrc, through private operators that torch directs by the device of their tensors.

As a backend this module is `cpu`; cuda.py is the same for CUDA tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..contract import (
    ACCUMULATE,
    Hinge,
    HingeBackward,
    LogSumExp,
    LogSumExpBackward,
    Problem,
    RankCount,
    Search,
)
from . import reference as reference_backend
from .quantize import positive_groups, quantize_queries, quantize_references  # noqa: F401

LIBRARY = Path(__file__).parents[1] / "_native.so"
BUILD = "Build it with `pip install .` (needs g++ or clang++), in a checkout `pip install -e . --no-build-isolation`."


def _load() -> str | None:
    """Loads the library; the reason why it cannot be, or None."""
    if not LIBRARY.exists():
        return f"the compiled library {LIBRARY.name} was not built. {BUILD}"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"the compiled library does not load with torch {torch.__version__}: {error}. {BUILD}"
    return None


NOT_LOADED = _load()
operators = torch.ops.dissim_native
#: Devices whose kernels leave a weight's Inf - Inf to Python. CUDA's mend it: reading it back would wait for the GPU.
MENDED_HERE = ("cpu",)


def unsupported_reason(problem: Problem) -> str | None:
    if problem.device.type != "cpu":
        return f"it runs tensors on the CPU, these are on {problem.device.type!r}"
    return NOT_LOADED


def isa() -> str:
    """The instruction set the kernels run with; DISSIM_ISA in the environment chooses another before import."""
    return torch.ops.dissim_native.isa()


def score(query: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (query.numel() and reference.numel() and weight.numel()):
        return reference_backend.score(query, reference, weight, bias)  # no term to add up
    out = query.new_empty(query.shape[0], weight.shape[0], query.shape[1], reference.shape[1])
    operators.score(query, reference, _wide(weight), None if bias is None else _wide(bias), out)
    return out


def score_backward(
    grad: Tensor, query: Tensor, reference: Tensor, weight: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    wide = _wide(weight)
    grads = [
        t.new_empty(t.shape) if needed else None for t, needed in zip((query, reference, wide), needs, strict=True)
    ]
    operators.score_backward(grad, query, reference, wide, *grads)
    of_weight = grads[2]
    if of_weight is not None and of_weight.device.type in MENDED_HERE:
        broken = ~of_weight.isfinite().all(0)
        if broken.any():  # Inf - Inf is lost in E2's two sums: add the terms themselves in these dimensions
            q, r, w = (x[..., broken] for x in (query, reference, wide))
            of_weight[:, broken] = reference_backend.score_backward(grad, q, r, w, (False, False, True))[0]
    if of_weight is not None:
        grads[2] = of_weight.to(weight.dtype)
    return [g for g in grads if g is not None]


def topk(search: Search) -> tuple[Tensor, Tensor]:
    found = _found(search)
    operators.topk(*_search(search), *found)
    return found


def hinge(given: Hinge) -> tuple[Tensor, Tensor, Tensor]:
    query, reference, weight, bias, *filters, margin, num_hard_negatives = given
    positive, negative = (query.new_empty(len(query), dtype=ACCUMULATE[query.dtype]) for _ in range(2))
    active = query.new_empty(len(query), (len(reference) + 7) // 8, dtype=torch.uint8)
    pairs = query[None], reference[None], _wide(weight), None if bias is None else _wide(bias)
    hard = -1 if num_hard_negatives is None else num_hard_negatives
    operators.hinge(*pairs, *map(_contiguous, filters), margin, hard, positive, negative, active)
    return positive, negative, active


def hinge_backward(given: HingeBackward, needs: Sequence[bool]) -> list[Tensor]:
    query, reference, weight = given[3:6]
    if not (query.numel() and reference.numel()):
        return reference_backend.hinge_backward(given, needs)  # zeros
    wide, upstream, labels = _wide(weight), map(_contiguous, given[:3]), map(_contiguous, given[6:])
    shapes = (query, reference, wide, wide.new_empty(1))
    grads = [t.new_empty(t.shape) if n else None for t, n in zip(shapes, needs, strict=True)]
    operators.hinge_backward(*upstream, query[None], reference[None], wide, *labels, *grads)
    of_weight = grads[2]
    if of_weight is not None and of_weight.device.type in MENDED_HERE:
        broken = ~of_weight.isfinite()
        if broken.any():  # as in score_backward
            some = given._replace(query=query[:, broken], reference=reference[:, broken], weight=wide[broken])
            of_weight[broken] = reference_backend.hinge_backward(some, (False, False, True, False))[0]
    if of_weight is not None:
        grads[2] = of_weight.to(weight.dtype)
    return [g for g in grads if g is not None]


def quantized_topk(search: Search, quantized: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`topk` by way of the codes of `quantize_references`, and how many references of each query were scored."""
    codes, errors, *grid = quantized
    given, (scores, indices) = _search(search), _found(search)
    rescored = search.query.new_empty(len(search.query), dtype=torch.int64)
    operators.quantized_topk(
        *given, positive_groups(given.weight), grid[-1], *quantize_queries(search.query, given.bias, grid),
        codes, errors, scores, indices, rescored,
    )  # fmt: skip
    return scores, indices, rescored


def _search(search: Search) -> Search:
    """As the kernels take it: a batch of one, wide, labels contiguous."""
    query, reference, weight, bias, k, largest = search[:6]
    wide = _wide(weight), None if bias is None else _wide(bias)
    return Search(query[None], reference[None], *wide, k, largest, *map(_contiguous, search.filters))


def _found(search: Search) -> tuple[Tensor, Tensor]:
    scores = search.query.new_empty(len(search.query), search.k, dtype=ACCUMULATE[search.query.dtype])
    return scores, torch.empty_like(scores, dtype=torch.int64)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(ACCUMULATE[tensor.dtype]).contiguous()


def logsumexp(given: LogSumExp) -> tuple[Tensor, Tensor, Tensor]:
    query, reference, weight, bias, scale, *filters, among = given
    value, mean_score = (query.new_empty(len(query), dtype=ACCUMULATE[query.dtype]) for _ in range(2))
    active = query.new_empty(len(query), (len(reference) + 7) // 8, dtype=torch.uint8)
    pairs = query[None], reference[None], _wide(weight), None if bias is None else _wide(bias)
    if among == "all":
        filters[:2] = None, None
    operators.logsumexp(*pairs, scale, *map(_contiguous, filters), among == "same", value, mean_score, active)
    return value, mean_score, active


def logsumexp_backward(given: LogSumExpBackward, needs: Sequence[bool]) -> list[Tensor]:
    grad, value, active, query, reference, weight, bias, scale = given
    wide = _wide(weight)
    grads = [t.new_empty(t.shape) if n else None for t, n in zip((query, reference, wide), needs, strict=True)]
    operators.logsumexp_backward(
        *map(_contiguous, (grad, value, active)), query[None], reference[None], wide,
        None if bias is None else _wide(bias), scale, *grads,
    )  # fmt: skip
    if grads[2] is not None:
        grads[2] = grads[2].to(weight.dtype)
    return [g for g in grads if g is not None]


def rank(given: RankCount) -> tuple[Tensor, Tensor]:
    query, reference, weight, bias, *lists = given
    counts, nan_rows = torch.empty_like(given.indices), query.new_empty(len(query), dtype=torch.uint8)
    pairs = query[None], reference[None], _wide(weight), None if bias is None else _wide(bias)
    operators.rank(*pairs, *map(_contiguous, lists), counts, nan_rows)
    return counts, nan_rows.bool()
