"""Peak memory of every operation and dtype with 1 to 64 threads and 1 to 1,000,000 dimensions. Takes some minutes."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from memory_probe import Case, too_large

DTYPES = ("float16", "bfloat16", "float32", "float64")
#: Queries, references, dimensions.
SHAPES = (
    (2, 2, 1_000_000),
    (17, 17, 1_000_000),
    (1, 64, 300_000),
    (100, 130, 100_000),
    (256, 1024, 16_384),
    (500, 500, 4096),
    (3000, 3000, 64),
    (100_000, 40, 8),
    (40, 100_000, 8),
    (20_000, 5000, 1),
)


def cases(operation, dtype, threads):
    for n, m, dim in SHAPES:
        if operation == "quantized_topk":
            dim = min(dim, 500_000)  # codes are of fewer than 2**19 columns
        for k in {min(m, 5), min(m, 1000)} if operation in ("topk", "hinge", "quantized_topk", "numpy_topk") else {5}:
            for active in (0.02, 1.0) if operation in ("hinge_backward", "logsumexp_backward") else (1.0,):
                yield Case(operation, n, m, dim, dtype, threads, k=k, active=active)
    if operation in ("forward", "backward"):
        yield Case(operation, 100, 200, 2000, dtype, threads, batch=40)
        yield Case(operation, 1, 1, 100_000, dtype, threads, batch=100)
        yield Case(operation, 60, 100, 30_000, dtype, threads, heads=8)


@pytest.mark.parametrize("threads", [1, 2, 8, 32, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "operation",
    [
        "forward",
        "backward",
        "topk",
        "hinge",
        "hinge_backward",
        "logsumexp",
        "logsumexp_backward",
        "rank",
        "quantized_topk",
        "numpy_score",
        "numpy_topk",
    ],
)
def test_extreme_shapes_stay_below_the_memory_bounds(operation, dtype, threads):
    if operation.startswith("numpy") and dtype == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    assert not too_large(list(cases(operation, dtype, threads)))
