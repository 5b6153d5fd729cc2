"""Scores and search on NumPy arrays with the same compiled kernels, without torch.

Results are the same bits as those of the torch operators on the CPU, with any number of threads.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, NoReturn

import numpy as np

try:
    import dissim_kernels._numpy as compiled
except ImportError as error:
    raise ImportError(
        f"dissim_kernels.numpy: its compiled module does not load: {error}. Build it with `pip install .` (needs g++ "
        "or clang++), in a checkout `pip install -e . --no-build-isolation`."
    ) from error

__all__ = ["TopK", "build_info", "score", "topk"]

#: embedding dtype -> accumulate dtype, as in contract.py; NumPy has no bfloat16.
ACCUMULATE: dict[np.dtype, np.dtype] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float64): np.dtype(np.float64),
}


#: More threads than this count as so many, and more than the system starts as those that it starts.
MOST_THREADS = 1024


class TopK(NamedTuple):
    """scores [N, k] in the embeddings' dtype and indices [N, k] int64, best first."""

    scores: np.ndarray
    indices: np.ndarray


def score(
    query: np.ndarray,
    reference: np.ndarray,
    weight: np.ndarray,
    bias: float | np.ndarray | None = None,
    *,
    threads: int | None = None,
) -> np.ndarray:
    """The dissimilarity-space score of every query with every reference (E1).

    Plain NumPy::

        np.abs(query[:, None] - reference) @ weight + bias

    without the N x M x D array. query [N, D], reference [M, D], weight [D], bias a number or a 0-d array -> [N, M].
    float16, float32 or float64, query and reference alike; weight and bias share the dtype or are float32 beside
    float16 rows, and are accumulated in float32 (float64 for float64). Any strides, no copy; sizes may be 0.

    Args:
        threads: how many to use; by default the environment's DISSIM_THREADS or OMP_NUM_THREADS, else all cores. More
            than 1024 count as 1024; where the system does not start as many, those that it starts do the work.

    Memory: the result, and at most 2 (N + M) D values of the rows' dtype and 16 MiB, with any number of threads.

    Raises:
        TypeError, ValueError: naming the argument, what was expected, what came and what to do.
        MemoryError: there is not so much memory.

    >>> import numpy as np
    >>> score(np.zeros((1, 2)), np.eye(2), np.array([-1.0, -2.0]), 0.5)
    array([[-0.5, -1.5]])
    """
    wide_weight, wide_bias = _check(query, reference, weight, bias)
    scores = np.empty((len(query), len(reference)), query.dtype)
    compiled.score(query, reference, wide_weight, wide_bias, scores, _threads(threads))
    return scores


def topk(
    query: np.ndarray,
    reference: np.ndarray,
    weight: np.ndarray,
    bias: float | np.ndarray | None = None,
    *,
    k: int,
    largest: bool = True,
    exclude_index: np.ndarray | None = None,
    threads: int | None = None,
) -> TopK:
    """The k best-scoring references of each query, exactly, without the N x M scores.

    Plain NumPy, but for NaN and for float16, which is ranked before it is rounded::

        order = np.argsort(-score(query, reference, weight, bias), axis=1, kind="stable")[:, :k]

    Best first; equal scores by lower index; a NaN score never outranks a number. exclude_index: int64 [N], a
    reference each query must not return, -1 for none. Other arguments, memory and errors as in `score` (scores of
    float16 rows are float32 before they are rounded; for a k above 2**19 one query's 16 k bytes may be more than
    16 MiB); ValueError where a query has fewer than k candidates.

    >>> import numpy as np
    >>> topk(np.zeros((1, 2)), np.eye(3)[:, :2], np.array([-1.0, -2.0]), k=2).indices
    array([[2, 0]])
    """
    wide_weight, wide_bias = _check(query, reference, weight, bias)
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 0:
        _raise_error("k", "an integer of at least 0", repr(k), "Pass an int.")
    if exclude_index is not None:
        if not isinstance(exclude_index, np.ndarray) or exclude_index.dtype != np.int64:
            got = getattr(exclude_index, "dtype", type(exclude_index).__name__)
            _raise_error("exclude_index", "an int64 array", got, "Use np.asarray(values, np.int64).", TypeError)
        if exclude_index.shape != (len(query),):
            _raise_error(
                "exclude_index",
                f"shape [{len(query)}]",
                _shape(exclude_index),
                "Pass one reference row for each query.",
            )
        exclude_index = np.ascontiguousarray(exclude_index)
    if len(query) and k > len(reference):  # before anything is allocated for it
        candidates = len(reference) - (exclude_index is not None and 0 <= exclude_index[0] < len(reference))
        _too_few(candidates, 0, k)
    scores = np.empty((len(query), k), ACCUMULATE[query.dtype])
    indices = np.empty(scores.shape, np.int64)
    compiled.topk(
        query, reference, wide_weight, wide_bias, k, bool(largest), exclude_index, scores, indices, _threads(threads)
    )
    if k and (short := np.flatnonzero(indices[:, -1] < 0)).size:
        _too_few(int((indices[short[0]] >= 0).sum()), short[0], k)
    return TopK(scores.astype(query.dtype, copy=False), indices)


def build_info() -> dict[str, Any]:
    """What was built and what runs here: version, compiler, flags, isa (the instruction set in use), isas (each one
    compiled, and whether this machine runs it) and kernels.

    The environment's DISSIM_ISA chooses another instruction set before the first call.

    >>> sorted(build_info())
    ['compiler', 'flags', 'isa', 'isas', 'kernels', 'version']
    """
    return compiled.build_info()


def _check(query: Any, reference: Any, weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:
    """Refuses what does not fit; weight [D] and bias [1] as the kernels read them."""
    for name, array in (("query", query), ("reference", reference), ("weight", weight)):
        if not isinstance(array, np.ndarray):
            _raise_error(name, "a numpy.ndarray", type(array).__name__, "Use np.asarray(value).", TypeError)
    if query.dtype not in ACCUMULATE:
        names = ", ".join(map(str, ACCUMULATE))
        _raise_error("query", f"one of {names}", query.dtype, "Convert it with .astype(np.float32).", TypeError)
    if reference.dtype != query.dtype:
        _raise_error("reference", f"query's dtype {query.dtype}", reference.dtype, "Convert one of them.", TypeError)
    for name, array, form in (("query", query, "[N, D]"), ("reference", reference, "[M, D]")):
        if array.ndim != 2:
            _raise_error(name, f"2 dimensions {form}", _shape(array), "Loop over or reshape the other dimensions.")
        if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
            _raise_error(name, "elements at multiples of their size", f"strides {array.strides}", "Use .copy().")
    for name, array in (("reference", reference), ("weight", weight)):
        if array.ndim < 1 or array.shape[-1] != query.shape[1]:
            expected = f"a last dimension of {query.shape[1]} as in query"
            _raise_error(name, expected, _shape(array), "All three share the embedding dimension D.")
    if weight.ndim != 1:
        _raise_error("weight", "one head [D]", _shape(weight), "Call once per head: weight[c].")
    wide = ACCUMULATE[query.dtype]
    for name, value in (("weight", weight), ("bias", bias)):
        if isinstance(value, np.ndarray) and value.dtype not in (query.dtype, wide):
            expected = f"{query.dtype} or {wide} beside {query.dtype} embeddings"
            _raise_error(name, expected, value.dtype, "Convert it.", TypeError)
    if isinstance(bias, np.ndarray):
        if bias.ndim:
            _raise_error("bias", "a number or shape []", _shape(bias), "Use bias[0].")
    elif bias is not None and not isinstance(bias, int | float | np.number):
        _raise_error("bias", "None, a number or an array", type(bias).__name__, "Use float(bias).", TypeError)
    return np.ascontiguousarray(weight, wide), np.full(1, 0 if bias is None else bias, wide)


def _threads(threads: int | None) -> int:
    if threads is None:
        for name in ("DISSIM_THREADS", "OMP_NUM_THREADS"):
            if value := os.environ.get(name):
                if not value.isdecimal() or int(value) < 1:
                    _raise_error(name, "a number of threads in the environment", repr(value), "Set it to 1 or more.")
                return min(int(value), MOST_THREADS)
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        _raise_error("threads", "None or an integer of at least 1", repr(threads), "Leave it out to use all cores.")
    return min(threads, MOST_THREADS)


def _too_few(candidates: int, row: int, k: int) -> NoReturn:
    _raise_error("k", f"at most the {candidates} candidates of query row {row}", k, "Ask for fewer.")


def _raise_error(
    argument: str, expected: str, got: object, remedy: str, error: type[Exception] = ValueError
) -> NoReturn:
    raise error(f"{argument}: expected {expected}, got {got}. {remedy}")


def _shape(array: np.ndarray) -> str:
    return f"shape {list(array.shape)}"
