"""The Triton kernels without a GPU: right under Triton's interpreter, and compiled for NVIDIA and AMD.

What they cost in NVIDIA's machine code, and that nothing spills, is asserted by test_sass.py from bench/budgets.py.
"""

import math
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from dissim_kernels import dispatch, fused_dissim_hinge_loss, fused_dissim_score, fused_dissim_topk
from dissim_kernels import testing as judge
from dissim_kernels.backends import triton as backend
from dissim_kernels.contract import HingeArguments, HingeBackwardArguments, Problem, TopKArguments

triton = pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[1]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_the_interpreted_kernels_pass_the_same_tests")
HALF = (torch.float16, torch.bfloat16)
#: Test file -> those of its tests that the interpreter can run in the time there is: every type, ties, odd sizes,
#: strides, gradients, any upstream, NaN.
CHOSEN = {
    "score": "triton and (those_of_the_definition and (ties or offset or 31x33x1 or wide and weight or nan and query)"
    " or tie_has_no or nearest_even or passes_through or needs6)",
    "topk": "triton and (nan_never or exclude_is or any_int64 or too_few or half_precision)",
    "hinge": "triton and (margin_costs or nan_score or sizes5 and sum or frozen and needs0 or any_int64 or half"
    " or infinities or few_and and float16 or task_takes and float32)",
    "triton": "interpreter",
}


@pytest.mark.parametrize("stem", CHOSEN)
@pytest.mark.skipif(INTERPRETED, reason="it runs the interpreter itself")
def test_the_interpreted_kernels_pass_the_same_tests(stem):
    settings = {**os.environ, "TRITON_INTERPRET": "1", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", CHOSEN[stem]]
    done = subprocess.run([*command, f"tests/test_{stem}.py"], env=settings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.count(".") > 5


# --- within the interpreter ---------------------------------------------------------------------------------------


@pytest.fixture
def guarded(monkeypatch):
    """Every tensor that the backend allocates lies between NaN (255 in bytes), which must stay."""
    borders, whole = [], torch.empty

    def allocate(*shape, dtype=torch.float32, device=None):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        size = math.prod(shape)
        memory = whole(size + 64, dtype=dtype)
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
    """Inputs between NaN as well: a value read from outside would be seen in a result."""
    plain = judge.random_inputs((35, 21), (37, 21), dtype=dtype)
    framed = [torch.nn.functional.pad(x, (3, 2, 2, 3), value=math.nan)[2:-3, 3:-2] for x in plain[:2]]
    inputs = plain._replace(query=framed[0], reference=framed[1])
    exact = judge.plain_score(*plain.double())
    grad = torch.ones(1, 1, 35, 37, dtype=dtype)
    given = (inputs.query[None], inputs.reference[None], inputs.weight[None])
    judge.assert_within(backend.score(*given, inputs.bias[None])[0, 0], exact, judge.score_bound(*plain))
    assert all(x.isfinite().all() for x in backend.score_backward(grad, *given, (True,) * 3))
    found = backend.topk(TopKArguments(*inputs[:3], inputs.bias[None], 5, True, None, None, None))
    judge.assert_topk_equal(*found, exact, judge.score_bound(*plain))
    sides = torch.arange(35) % 3, torch.arange(37) % 3
    positive, negative, active = backend.hinge(
        HingeArguments(*inputs[:3], inputs.bias[None], *sides, None, 1.0, None)
    )
    found = backend.hinge_backward(
        HingeBackwardArguments(positive, negative, active, *inputs[:3], *sides), (True,) * 4
    )
    assert all(x.isfinite().all() for x in (positive, negative, *found))


@interpreted
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_interpreter_finds_the_max_form_as_near_as_the_direct_one(dtype):
    """E7: at most 4 times the error of float32 sums of E1, with any mean, weights of any size."""
    from dissim_kernels.backends.triton import max_form

    for offset, scale in ((0, 1), (1, 1e-3), (1000, 1), (-30, 1e3)):
        plain = judge.random_inputs((24, 200), (40, 200), dtype=dtype, bias=False)
        query, reference = plain.query + offset, plain.reference + offset
        weight = plain.weight.float()[None] * scale * 1.001
        exact = judge.plain_score(query.double(), reference.double(), weight[0].double())
        direct = judge.plain_score(query.float(), reference.float(), weight[0])
        out = torch.empty(1, 1, 24, 40)
        assert max_form.score(query[None], reference[None], weight, None, out) == 1, "it was not chosen"
        errors = [(x.double() - exact).square().mean().sqrt() for x in (out[0, 0], direct)]
        assert errors[0] <= 4 * errors[1], (offset, scale, errors)


@interpreted
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_interpreter_leaves_to_the_direct_form_what_the_max_form_cannot(dtype):
    from dissim_kernels.backends.triton import max_form

    plain = judge.random_inputs((24, 20), (40, 20), dtype=dtype, bias=False)
    far = plain.query + 1000
    far[0] = -1  # no centre is exact for both, and the mean stays
    for query in (far, plain.query.index_fill(0, torch.tensor([3]), math.inf), plain.query * math.nan):
        given = query[None], plain.reference[None] + (far[1, 0] - plain.query[1, 0]), plain.weight[None]
        assert max_form.score(*given, None, torch.empty(1, 1, 24, 40)) == 0


@interpreted
def test_interpreter_cuts_long_columns_in_parts_and_large_k_in_blocks():
    inputs = judge.tie_grid(3, 600, 5)
    exact, none = judge.plain_score(*inputs.double()), torch.zeros(3, 600)
    for k in (2, 33):
        judge.assert_topk_equal(*fused_dissim_topk(*inputs, k=k, backend="triton"), exact, none)
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


# --- without it ---------------------------------------------------------------------------------------------------


def run_python(arguments, folder):
    """In a process that looks for modules in this folder first."""
    path = os.pathsep.join([str(Path(folder).absolute()), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], env=settings, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
def test_every_kernel_compiles():
    """For one target; `make compat` has three, with every Triton."""
    done = run_python(["tests/triton_compile.py", "sm_80"], ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"Triton {metadata.version('triton')}, " in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="one process is enough")
def test_an_old_triton_is_told(tmp_path):
    (tmp_path / "triton.py").write_text("__version__ = '3.5.1'")
    program = "import dissim_kernels; print(dissim_kernels.unavailable_backends()['triton'])"
    done = run_python(["-c", program], tmp_path)
    assert "Triton 3.6 or newer cannot be imported (this is 3.5.1)" in done.stdout, done.stderr[-1000:]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_it_says_what_it_cannot_run():
    assert "TRITON_INTERPRET=1" in str(backend.unsupported_reason(Problem("score", torch.device("cpu"))))
    assert "these are on 'xpu'" in str(backend.unsupported_reason(Problem("score", torch.device("xpu"))))
    with pytest.raises(RuntimeError, match="'triton' cannot run this call"):
        fused_dissim_score(*judge.random_inputs((2, 3), (2, 3)), backend="triton")


def test_cuda_tensors_go_to_it_and_never_silently_to_the_reference(monkeypatch):
    for name in set(dispatch.AUTO["cuda"]) - {"triton"}:
        monkeypatch.setattr(
            dispatch.BACKENDS[name], "unsupported_reason", lambda problem: "it is broken for this test"
        )
    assert "triton" in dispatch.AUTO["cuda"] and "reference" not in dispatch.AUTO["cuda"]
    monkeypatch.setattr(backend, "_NOT_LOADED", "Triton is missing for this test")
    with pytest.raises(RuntimeError, match="'triton' cannot run this call: Triton is missing for this test"):
        dispatch.resolve("auto", Problem("score", torch.device("cuda", 0)))
