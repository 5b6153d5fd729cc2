"""Scores and top-k on NumPy arrays by the same compiled kernels, without torch.

Results are bit-identical to those of the torch operators on the CPU, with any number of threads.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple, NoReturn

import numpy as np

try:
    import dissim_kernels._numpy as compiled
except ImportError as error:
    raise ImportError(
        f"dissim_kernels.numpy: its compiled module does not load: {error}. In a clone of "
        "dissim-kernels, run `pip install -e .` (needs g++ or clang++)."
    ) from error

__all__ = ["TopK", "build_info", "score", "topk"]

#: embedding dtype -> accumulator dtype, as in contract.py; NumPy has no bfloat16.
ACCUMULATE: dict[np.dtype, np.dtype] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float64): np.dtype(np.float64),
}

#: A larger number of threads is reduced to this.
MAX_THREADS = 1024


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
    """The score of every query with every reference (E1): a signed weighted L1 score, larger = "same".

    Plain NumPy::

        np.abs(query[:, None] - reference) @ weight + bias

    without the N x M x D array. query [N, D], reference [M, D], weight [D], bias a number or a 0-d array -> [N, M].
    query and reference are both float16, float32 or float64. weight and bias have the same dtype, or float32 with
    float16 rows. Sums are accumulated in float32 (float64 for float64). Any strides, without a copy; sizes may be 0.

    Args:
        threads: number of threads, at most 1024; by default the environment's DISSIM_THREADS or OMP_NUM_THREADS, else
            all cores. If the system does not start all of them, those that it starts do the work.

    Memory: the result, and at most 2(N + M)D values of the rows' dtype and 16 MiB, with any number of threads.

    Raises:
        TypeError, ValueError: an argument is not valid. The message names the argument, what was expected, what was
            given and how to fix it.
        MemoryError: memory is exhausted.

    >>> import numpy as np
    >>> score(np.zeros((1, 2)), np.eye(2), np.array([-1.0, -2.0]), 0.5)
    array([[-0.5, -1.5]])
    """
    acc_weight, acc_bias = _check(query, reference, weight, bias)
    scores = np.empty((len(query), len(reference)), query.dtype)
    compiled.score(query, reference, acc_weight, acc_bias, scores, _threads(threads))
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

    Plain NumPy, except for NaN and for float16, which is ranked before it is rounded::

        order = np.argsort(-score(query, reference, weight, bias), axis=1, kind="stable")[:, :k]

    Best first; ties by lower index; a NaN score comes after every number. exclude_index: int64 [N], a reference that
    must not be returned for each query, -1 for none. Other arguments, memory and errors as in `score`, and ValueError
    if a query has fewer than k candidates. Memory: scores of float16 rows are float32 before they are rounded; for a
    k above 2**19, the 16 k bytes of one query may be more than 16 MiB.

    >>> import numpy as np
    >>> topk(np.zeros((1, 2)), np.eye(3)[:, :2], np.array([-1.0, -2.0]), k=2).indices
    array([[2, 0]])
    """
    acc_weight, acc_bias = _check(query, reference, weight, bias)
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 0:
        _raise_error("k", "an integer of at least 0", repr(k), "Pass an int.")
    if not isinstance(largest, bool | np.bool_):
        _raise_error("largest", "True or False", repr(largest), "Pass a bool.", TypeError)
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
    if k > len(reference):  # checked before anything is allocated
        if not len(query):
            _raise_error("k", f"at most the {len(reference)} rows of reference", k, "Use a smaller k.")
        candidates = len(reference) - (exclude_index is not None and 0 <= exclude_index[0] < len(reference))
        _raise_too_few_candidates(candidates, 0, k)
    scores = np.empty((len(query), k), ACCUMULATE[query.dtype])
    indices = np.empty(scores.shape, np.int64)
    compiled.topk(
        query, reference, acc_weight, acc_bias, k, bool(largest), exclude_index, scores, indices, _threads(threads)
    )
    if k and (short := np.flatnonzero(indices[:, -1] < 0)).size:
        _raise_too_few_candidates(int((indices[short[0]] >= 0).sum()), short[0], k)
    return TopK(scores.astype(query.dtype, copy=False), indices)


def build_info() -> dict[str, Any]:
    """How the library was built and what it uses here: version, compiler, flags, isa (the instruction set in use),
    isas (each compiled instruction set, and whether this machine supports it) and kernels.

    The environment variable DISSIM_ISA, set before the first call, chooses another instruction set.

    >>> sorted(build_info())
    ['compiler', 'flags', 'isa', 'isas', 'kernels', 'version']
    """
    return compiled.build_info()


def _check(query: Any, reference: Any, weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:
    """Raises for invalid arguments. Returns weight [D] and bias [1] in the accumulator dtype, contiguous."""
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
    if query.shape[1] >= 2**31:
        _raise_error("query", "fewer than 2**31 dimensions", query.shape[1], "Add the scores of parts.")
    if weight.ndim != 1:
        _raise_error("weight", "one head [D]", _shape(weight), "Call once per head: weight[c].")
    acc = ACCUMULATE[query.dtype]
    for name, value in (("weight", weight), ("bias", bias)):
        if isinstance(value, np.ndarray) and value.dtype not in (query.dtype, acc):
            expected = f"{query.dtype} or {acc} with {query.dtype} embeddings"
            _raise_error(name, expected, value.dtype, "Convert it.", TypeError)
    if isinstance(bias, np.ndarray):
        if bias.ndim:
            _raise_error("bias", "a number or shape []", _shape(bias), "Use bias[0].")
    elif bias is not None and not _is_real(bias):
        _raise_error("bias", "None, a number or an array", type(bias).__name__, "Use float(bias).", TypeError)
    if isinstance(bias, int) and abs(bias) > sys.float_info.max:
        _raise_error("bias", "a number in the range of float64", "a larger one", "Use a float, which can be inf.")
    with np.errstate(over="ignore"):  # a number beyond the range of the dtype becomes infinite
        return np.ascontiguousarray(weight, acc), np.array([0 if bias is None else bias], np.float64).astype(acc)


def _is_real(value: Any) -> bool:
    """Whether it is a number; NumPy counts a timedelta64 as an integer."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, np.timedelta64)


def _threads(threads: int | None) -> int:
    if threads is None:
        for name in ("DISSIM_THREADS", "OMP_NUM_THREADS"):
            if value := os.environ.get(name):
                # OpenMP's variable may be a list, a number for each level of nested loops.
                levels = [value] if name == "DISSIM_THREADS" else [level.strip() for level in value.split(",")]
                if not all(level.isdecimal() and int(level) > 0 for level in levels):
                    _raise_error(name, "a number of threads in the environment", repr(value), "Set it to 1 or more.")
                return min(int(levels[0]), MAX_THREADS)
        return len(os.sched_getaffinity(0))
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        _raise_error("threads", "None or an integer of at least 1", repr(threads), "Omit it to use all cores.")
    return min(threads, MAX_THREADS)


def _raise_too_few_candidates(candidates: int, row: int, k: int) -> NoReturn:
    _raise_error("k", f"at most the {candidates} candidates of query row {row}", k, "Use a smaller k.")


def _raise_error(
    argument: str, expected: str, got: object, remedy: str, error: type[Exception] = ValueError
) -> NoReturn:
    raise error(f"{argument}: expected {expected}, got {got}. {remedy}")


def _shape(array: np.ndarray) -> str:
    return f"shape {list(array.shape)}"
