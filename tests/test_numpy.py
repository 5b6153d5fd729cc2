"""The NumPy module: it needs no torch, is bit-identical to the torch operators, and validates its arguments."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import dissim_kernels
from dissim_kernels import fused_dissim_score, fused_dissim_topk, testing
from dissim_kernels import numpy as dissim_numpy

DTYPES = (torch.float16, torch.float32, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def run(script, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def matrices(dtype):
    """The edge cases of one head without a batch: names, torch tensors, and NumPy arrays of the same memory."""
    for name, inputs in testing.edge_case_inputs(dtype).items():
        if inputs.query.dim() == 2 and inputs.reference.dim() == 2 and inputs.weight.dim() == 1:
            yield name, inputs, [x.numpy() if isinstance(x, torch.Tensor) else x for x in inputs]


def bit_identical(found, expected):
    """Whether an array equals a tensor in every bit, except for the bits of NaN."""
    expected = expected.numpy()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return np.array_equal(np.isnan(found), np.isnan(expected)) and np.array_equal(
        np.where(np.isnan(found), 0, found), np.where(np.isnan(expected), 0, expected)
    )


def test_torch_is_not_imported():
    script = "import sys, numpy as np, dissim_kernels.numpy as d; x = np.ones((3, 4)); d.score(x, x, x[0]); {}"
    script += "assert 'torch' not in sys.modules; print(d.build_info()['isa'])"
    assert run(script.format("d.topk(x, x, x[0], k=1); ")).strip() in torch.ops.dissim_native.isa()


def test_public_names_are_imported_lazily():
    names = (
        "import dissim_kernels as d; assert set(d.__all__) <= set(dir(d)); [getattr(d, name) for name in d.__all__]"
    )
    run(names)
    run(f"{names}; from dissim_kernels import *; fused_dissim_score.__doc__; import torch; torch.ops.dissim.score")
    run("import torch, dissim_kernels; torch.ops.dissim.score.default")
    with pytest.raises(AttributeError, match="no attribute 'fused_nothing'"):
        dissim_kernels.fused_nothing  # noqa: B018


@dtypes
def test_scores_are_bit_identical_to_torch(dtype):
    for name, inputs, arrays in matrices(dtype):
        assert bit_identical(dissim_numpy.score(*arrays), fused_dissim_score(*inputs)), name


@dtypes
@pytest.mark.parametrize("largest", [True, False])
def test_topk_is_bit_identical_to_torch(dtype, largest):
    for name, inputs, arrays in matrices(dtype):
        for k in {0, min(1, len(inputs.reference)), len(inputs.reference) // 2}:
            found = dissim_numpy.topk(*arrays, k=k, largest=largest)
            expected = fused_dissim_topk(*inputs, k=k, largest=largest)
            assert bit_identical(found.scores, expected.scores) and bit_identical(found.indices, expected.indices), (
                name
            )


def test_exclude_index_and_arbitrary_strides():
    inputs = testing.random_inputs((40, 9), (50, 9))
    exclude_index = torch.arange(80)[::2] % 50 - 1
    found = dissim_numpy.topk(*(x.numpy() for x in inputs), k=6, exclude_index=exclude_index.numpy())
    assert bit_identical(found.indices, fused_dissim_topk(*inputs, k=6, exclude_index=exclude_index).indices)
    query, reference, weight = (x.numpy() for x in inputs[:3])
    reversed_scores = dissim_numpy.score(query[::-1, ::-1], reference[::2, ::-1], weight[::-1])
    assert bit_identical(reversed_scores, fused_dissim_score(*(torch.from_numpy(x.copy()) for x in (
        query[::-1, ::-1], reference[::2, ::-1], weight[::-1]))))  # fmt: skip


def test_bit_identical_for_any_number_of_threads_and_environment_variables(monkeypatch):
    arrays = [x.numpy() for x in testing.random_inputs((70, 33), (600, 33))]
    first = dissim_numpy.score(*arrays, threads=1), *dissim_numpy.topk(*arrays, k=9, threads=1)
    for threads in (2, 3, 8):
        other = dissim_numpy.score(*arrays, threads=threads), *dissim_numpy.topk(*arrays, k=9, threads=threads)
        assert all(map(np.array_equal, first, other))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert dissim_numpy._threads(None) == 3
    for value, threads in (("4,2", 4), (" 2", 2), ("3 , 1", 3)):  # a number for each level of nested loops
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert dissim_numpy._threads(None) == threads
        monkeypatch.setenv("DISSIM_THREADS", value)
        with pytest.raises(ValueError, match="DISSIM_THREADS: expected a number of threads in the environment"):
            dissim_numpy._threads(None)
        monkeypatch.delenv("DISSIM_THREADS")
    for value in ("4,", "0", "-1", "4;2", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        with pytest.raises(ValueError, match="OMP_NUM_THREADS: expected a number of threads in the environment"):
            dissim_numpy._threads(None)
    monkeypatch.setenv("DISSIM_THREADS", "5")
    assert dissim_numpy._threads(None) == 5
    monkeypatch.setenv("DISSIM_THREADS", "many")
    with pytest.raises(ValueError, match="DISSIM_THREADS: expected a number of threads in the environment"):
        dissim_numpy.score(*arrays)


@pytest.mark.parametrize("threads", [1025, 2**29, 2**31, 10**30])
def test_huge_thread_counts_are_bit_identical(threads, monkeypatch):
    """Enough work for several threads: an overflow of the count would leave scores unwritten."""
    arrays = [x.numpy() for x in testing.random_inputs((300, 64), (3000, 64))]
    expected = dissim_numpy.score(*arrays, threads=1)
    assert np.array_equal(dissim_numpy.score(*arrays, threads=threads), expected)
    assert np.array_equal(dissim_numpy.topk(*arrays, k=1, threads=threads).scores[:, 0], expected.max(1))
    monkeypatch.setenv("DISSIM_THREADS", str(threads))
    assert np.array_equal(dissim_numpy.score(*arrays), expected)


def test_build_info():
    facts = dissim_numpy.build_info()
    assert facts["isa"] == torch.ops.dissim_native.isa() and facts["isas"][facts["isa"]]
    listed = torch.ops.dissim_native.isas().split()
    assert facts["isas"] == {name.strip("[]"): not name.startswith("[") for name in listed}
    assert {"score", "topk"} <= set(facts["kernels"]) and "-O3" in facts["flags"] and facts["compiler"]
    assert facts["version"][0].isdigit()
    chosen = [name for name, runs in facts["isas"].items() if runs][-1]
    assert run("import dissim_kernels.numpy as d; print(d.build_info()['isa'])", DISSIM_ISA=chosen).strip() == chosen


Q, R, W = np.ones((3, 5), np.float32), np.ones((4, 5), np.float32), np.ones(5, np.float32)
#: The shapes of rows whose dimensions do not fit in int32.
HUGE = {"query": (1, 2**31), "reference": (1, 2**31), "weight": (2**31,)}
PACKED = np.zeros((3, 5), np.dtype([("gap", np.uint8), ("value", np.float32)]))["value"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": [[1.0]]}, TypeError, r"query: expected a numpy.ndarray, got list. Use np.asarray\(value\)."),
        (
            {"query": Q.astype(int)},
            TypeError,
            "query: expected one of float16, float32, float64, got int64. Conv",
        ),
        (
            {"query": Q.astype(">f4")},
            TypeError,
            "query: expected one of float16, float32, float64, got >f4. Conv",
        ),
        ({"query": Q[0]}, ValueError, r"query: expected 2 dimensions \[N, D\], got shape \[5\]. Loop over"),
        (
            {"query": PACKED},
            ValueError,
            "query: expected elements at multiples of their size, got strides .* Use",
        ),
        (
            {"reference": R.astype("d")},
            TypeError,
            "reference: expected query's dtype float32, got float64. Conv",
        ),
        ({"reference": R[:, :4]}, ValueError, r"reference: expected a last dimension of 5 as in query, got shape"),
        ({"weight": W[:4]}, ValueError, r"weight: expected a last dimension of 5 as in query, got shape \[4\]. All"),
        ({"weight": Q}, ValueError, r"weight: expected one head \[D\], got shape \[3, 5\]. Call once per head"),
        (
            {"weight": W.astype("d")},
            TypeError,
            "weight: expected float32 or float32 with float32 embeddings",
        ),
        ({"bias": W}, ValueError, r"bias: expected a number or shape \[\], got shape \[5\]. Use bias\[0\]"),
        ({"bias": "1"}, TypeError, r"bias: expected None, a number or an array, got str. Use float\(bias\)"),
        ({"threads": 0}, ValueError, "threads: expected None or an integer of at least 1, got 0. Omit it"),
        ({"k": -1}, ValueError, "k: expected an integer of at least 0, got -1. Pass an int"),
        (
            {"bias": 10**400},
            ValueError,
            "bias: expected a number in the range of float64, got a larger one. Use a float, which can be inf",
        ),
        ({"bias": np.complex64(1)}, TypeError, "bias: expected None, a number or an array, got complex64. Use float"),
        ({"bias": np.timedelta64(1)}, TypeError, "bias: expected None, a number or an array, got timedelta64. Use"),
        ({"largest": "no"}, TypeError, "largest: expected True or False, got 'no'. Pass a bool"),
        (
            {name: np.broadcast_to(np.float32(1), shape) for name, shape in HUGE.items()},
            ValueError,
            r"query: expected fewer than 2\*\*31 dimensions, got 2147483648. Add the scores",
        ),
        ({"k": 5}, ValueError, "k: expected at most the 4 candidates of query row 0, got 5. Use a smaller k"),
        ({"k": 2**50}, ValueError, f"k: expected at most the 4 candidates of query row 0, got {2**50}. Use"),
        (
            {"query": Q[:0], "k": 2**40},
            ValueError,
            f"k: expected at most the 4 rows of reference, got {2**40}. Use a",
        ),
        (
            {"k": 2**50, "exclude_index": np.zeros(3, np.int64)},
            ValueError,
            "k: expected at most the 3 candidates of query row 0",
        ),
        (
            {"exclude_index": np.zeros(3)},
            TypeError,
            "exclude_index: expected an int64 array, got float64. Use np.asarray",
        ),
        (
            {"exclude_index": np.zeros(2, int)},
            ValueError,
            r"exclude_index: expected shape \[3\], got shape \[2\]. Pass one",
        ),
    ],
)
def test_invalid_arguments_raise(change, error, message):
    arguments = {"query": Q, "reference": R, "weight": W, "k": 1, **change}
    with pytest.raises(error, match=f"^{message}"):
        dissim_numpy.topk(**arguments)


def test_a_bias_out_of_range_is_infinite():
    assert (dissim_numpy.score(Q, R, W, 1e39) == np.inf).all()
    assert (dissim_numpy.score(Q, R, W, -1e39) == -np.inf).all()


def test_an_instruction_set_that_cannot_run_raises_with_the_choices():
    script = "import dissim_kernels.numpy as d\ntry: d.build_info()\nexcept RuntimeError as error: print(error)"
    names = " ".join(name for name, runs in dissim_numpy.build_info()["isas"].items() if runs).replace(" ", ", ")
    expected = f"DISSIM_ISA: expected an instruction set that this machine runs ({names}), got sse9. Set one of"
    assert run(script, DISSIM_ISA="sse9").startswith(expected)
