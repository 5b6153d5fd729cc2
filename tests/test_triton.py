"""The Triton kernels without a GPU: executed by Triton's interpreter, and compiled for NVIDIA and AMD.

test_sass.py asserts their cost in NVIDIA's machine code, by bench/budgets.py.
"""

import math
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from dissim_kernels import dispatch, fused_dissim_hinge_loss, fused_dissim_score, fused_dissim_topk, testing
from dissim_kernels.backends import triton as backend
from dissim_kernels.contract import (
    HingeArguments,
    HingeBackwardArguments,
    LogSumExpArguments,
    LogSumExpBackwardArguments,
    Problem,
    RankArguments,
    TopKArguments,
)

triton = pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[1]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_the_interpreted_kernels_pass_the_same_tests")
HALF = (torch.float16, torch.bfloat16)
#: Test file -> the expression (-k) that selects the tests that the interpreter runs in reasonable time: every dtype,
#: ties, odd sizes, strides, gradients, upstream gradients, NaN.
SELECTED = {
    "score": "triton and (those_of_the_definition and (ties or offset or 31x33x1 or accumulator or nan and query)"
    " or tie_has_no or nearest_even or pass_through or needs6)",
    "topk": "triton and (hardest or nan_never or exclude_index_of or any_int64 or too_few or half_precision)",
    "hinge": "triton and (margin_has or nan_score or sizes5 and sum or frozen and needs0 or any_int64 or half"
    " or infinities or sparse_and and 150 and torch.float16)",
    "logsumexp": "triton and (gradients and same and (100 or 1.0 and float32) or without_pairs or nan_and)",
    "rank": "triton and (full_sort or short or a_nan or infinite or top_k and float16)",
    "triton": "interpreter",
}


@pytest.mark.skipif(INTERPRETED, reason="this test starts the interpreter")
def test_the_interpreted_kernels_pass_the_same_tests():
    """In one process, because importing torch takes as long as many of the tests."""
    settings = {**os.environ, "TRITON_INTERPRET": "1", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    files = {f"test_{stem}.py": expression for stem, expression in SELECTED.items()}
    chosen = " or ".join(f"{file} and ({expression})" for file, expression in files.items())
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-k", chosen]
    command += [f"tests/{file}" for file in files]
    done = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for file in files:
        assert len(re.findall(rf"{file}::.* PASSED", done.stdout)) > 5, file


# --- within the interpreter ---------------------------------------------------------------------------------------


@pytest.fixture
def guarded(monkeypatch):
    """Every tensor that the backend allocates has borders of NaN (bytes of 255), which must not change."""
    borders, empty = [], torch.empty

    def allocate(*shape, dtype=torch.float32, device=None):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        size = math.prod(shape)
        memory = empty(size + 64, dtype=dtype)
        memory.view(torch.uint8).fill_(255)
        borders.extend((memory[:32], memory[-32:]))
        return memory[32 : size + 32].view(shape)

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: allocate(*shape, **options).zero_())
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda x, *shape, **options: allocate(*shape, **{"dtype": x.dtype, **options})
    )
    yield
    assert borders and all((border.view(torch.uint8) == 255).all() for border in borders)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_interpreter_sees_no_access_out_of_bounds(dtype, guarded):
    """Inputs have borders of NaN as well, so that a value read out of bounds would appear in a result."""
    plain = testing.random_inputs((35, 21), (37, 21), dtype=dtype)
    framed = [torch.nn.functional.pad(x, (3, 2, 2, 3), value=math.nan)[2:-3, 3:-2] for x in plain[:2]]
    inputs = plain._replace(query=framed[0], reference=framed[1])
    exact = testing.plain_score(*plain.double())
    grad = torch.ones(1, 1, 35, 37, dtype=dtype)
    given = (inputs.query[None], inputs.reference[None], inputs.weight[None])
    testing.assert_within(backend.score(*given, inputs.bias[None])[0, 0], exact, testing.score_bound(*plain))
    assert all(x.isfinite().all() for x in backend.score_backward(grad, *given, (True,) * 3))
    found = backend.topk(TopKArguments(*inputs[:3], inputs.bias[None], 5, True, None, None, None))
    testing.assert_topk_equal(*found, exact, testing.score_bound(*plain))
    sides = torch.arange(35) % 3, torch.arange(37) % 3
    positive, negative, active = backend.hinge(
        HingeArguments(*inputs[:3], inputs.bias[None], *sides, None, 1.0, None)
    )
    found = backend.hinge_backward(
        HingeBackwardArguments(positive, negative, active, *inputs[:3], *sides), (True,) * 4
    )
    assert all(x.isfinite().all() for x in (positive, negative, *found))
    head = inputs.weight, inputs.bias[None]
    sums = LogSumExpArguments(*inputs[:2], *head, torch.ones(1), *sides, None, "same")
    value, mean_score, active = backend.logsumexp(sums)
    found = backend.logsumexp_backward(
        LogSumExpBackwardArguments(torch.ones(35), value, active, *inputs[:2], *head, torch.ones(1)), (True,) * 3
    )
    assert all(x.isfinite().all() for x in (value, mean_score, *found))
    lists = torch.arange(36), torch.arange(35)
    scores = backend.listed_scores(*inputs[:2], *head, *lists)
    counts, nan_rows = backend.rank(RankArguments(*inputs[:2], *head, *lists, scores))
    assert torch.equal(counts, (exact > exact[lists[1], lists[1], None])[:35].sum(1)) and not nan_rows.any()


@interpreted
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_interpreter_max_form_is_as_accurate_as_the_direct_form(dtype):
    """At most 4 times the error of direct float32 sums (E1), for any mean and any size of weights."""
    from dissim_kernels.backends.triton import max_form

    for offset, scale in ((0, 1), (1, 1e-3), (1000, 1), (-30, 1e3)):
        plain = testing.random_inputs((24, 200), (40, 200), dtype=dtype, bias=False)
        query, reference = plain.query + offset, plain.reference + offset
        weight = plain.weight.float()[None] * scale * 1.001
        exact = testing.plain_score(query.double(), reference.double(), weight[0].double())
        direct = testing.plain_score(query.float(), reference.float(), weight[0])
        out = torch.empty(1, 1, 24, 40)
        assert max_form.score(query[None], reference[None], weight, None, out) == 1, "the max form was not used"
        errors = [(x.double() - exact).square().mean().sqrt() for x in (out[0, 0], direct)]
        assert errors[0] <= 4 * errors[1], (offset, scale, errors)


@interpreted
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_interpreter_rescores_directly_where_the_max_form_cancels(dtype):
    from dissim_kernels.backends.triton import max_form

    plain = testing.random_inputs((24, 20), (40, 20), dtype=dtype, bias=False)
    moved = plain.query + 1000
    moved[0] = -1  # no center is exact for both, and the mean is nearly the same
    for query in (moved, plain.query.index_fill(0, torch.tensor([3]), math.inf), plain.query * math.nan):
        given = query[None], plain.reference[None] + (moved[1, 0] - plain.query[1, 0]), plain.weight[None]
        assert max_form.score(*given, None, torch.empty(1, 1, 24, 40)) == 0


@interpreted
def test_interpreter_splits_many_references_and_large_k():
    inputs = testing.tied_inputs(3, 600, 5)
    exact, none = testing.plain_score(*inputs.double()), torch.zeros(3, 600)
    for k in (2, 33):
        testing.assert_topk_equal(*fused_dissim_topk(*inputs, k=k, backend="triton"), exact, none)
    query = inputs.query.clone().requires_grad_()
    fused_dissim_score(query, *inputs[1:], backend="triton").sum().backward()
    wanted = (inputs.weight * (inputs.query[:, None] - inputs.reference).sign()).sum(1)
    assert torch.equal(query.grad, wanted)
    sides = torch.arange(3) % 2, torch.arange(600) % 2
    found, wanted = (
        fused_dissim_hinge_loss(*inputs, *sides, num_hard_negatives=2, backend=name)
        for name in ("triton", "reference")
    )
    assert torch.isclose(found, wanted)


# --- without the interpreter --------------------------------------------------------------------------------------


def run_python(arguments, folder):
    """Runs Python in a process that imports modules from this folder first."""
    path = os.pathsep.join([str(Path(folder).absolute()), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], env=settings, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
def test_every_kernel_compiles():
    """For one target. `make compat` compiles for three, with every supported Triton."""
    done = run_python(["tests/triton_compile.py", "sm_80"], ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"Triton {metadata.version('triton')}, " in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="one process is enough")
def test_old_triton_gives_a_reason(tmp_path):
    (tmp_path / "triton.py").write_text("__version__ = '3.5.1'")
    program = "import dissim_kernels; print(dissim_kernels.unavailable_backends()['triton'])"
    done = run_python(["-c", program], tmp_path)
    assert "Triton 3.6 or newer cannot be imported (this is 3.5.1)" in done.stdout, done.stderr[-1000:]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_unsupported_calls_have_a_reason():
    assert "TRITON_INTERPRET=1" in str(backend.unsupported_reason(Problem("score", torch.device("cpu"))))
    assert "not on 'xpu'" in str(backend.unsupported_reason(Problem("score", torch.device("xpu"))))
    with pytest.raises(RuntimeError, match="'triton' cannot run this call"):
        fused_dissim_score(*testing.random_inputs((2, 3), (2, 3)), backend="triton")


def test_cuda_tensors_never_fall_back_to_the_reference(monkeypatch):
    for name in set(dispatch.AUTO["cuda"]) - {"triton"}:
        monkeypatch.setattr(
            dispatch.BACKENDS[name], "unsupported_reason", lambda problem: "it is broken for this test"
        )
    assert "triton" in dispatch.AUTO["cuda"] and "reference" not in dispatch.AUTO["cuda"]
    monkeypatch.setattr(backend, "_NOT_LOADED", "Triton is missing for this test")
    with pytest.raises(RuntimeError, match="'triton' cannot run this call: Triton is missing for this test"):
        dispatch.resolve("auto", Problem("score", torch.device("cuda", 0)))
