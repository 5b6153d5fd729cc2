"""The choice of the backend: the named one, or the first of the table that can run, or an error with all reasons."""

import runpy
import threading

import pytest
import torch

from dissim_kernels import (
    available_backends,
    dispatch,
    fused_dissim_hinge_loss,
    fused_dissim_logsumexp,
    fused_dissim_rank,
    fused_dissim_score,
    fused_dissim_topk,
    last_backend,
    paired_dissim_score,
    testing,
    unavailable_backends,
)
from dissim_kernels.backends import capability, cuda, native, triton
from dissim_kernels.contract import Problem

INPUTS = testing.random_inputs((4, 5), (4, 5))
SIDES = (torch.arange(4) % 2,) * 2
CALLS = {
    "score": lambda **x: fused_dissim_score(*INPUTS, **x),
    "paired": lambda **x: paired_dissim_score(*INPUTS, **x),
    "topk": lambda **x: fused_dissim_topk(*INPUTS, k=2, **x),
    "hinge": lambda **x: fused_dissim_hinge_loss(*INPUTS, *SIDES, **x),
    "logsumexp": lambda **x: fused_dissim_logsumexp(*INPUTS, among="all", **x),
    "rank": lambda **x: fused_dissim_rank(*INPUTS, query_labels=SIDES[0], reference_labels=SIDES[1], **x),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def broken_library(monkeypatch):
    monkeypatch.setattr(native, "NOT_LOADED", "the compiled library is broken for this test")


@calls
@pytest.mark.parametrize("backend", testing.runnable_backends())
def test_named_backend_runs(backend, call, monkeypatch):
    """Checked by spies in the modules, not by `last_backend` alone."""
    entered = []
    for name, module in dispatch.BACKENDS.items():
        for operation in ("score", "topk", "hinge", "logsumexp", "listed_scores", "rank"):
            function = getattr(module, operation)

            def spy(*args, _name=name, _function=function):
                entered.append(_name)
                return _function(*args)

            monkeypatch.setattr(module, operation, spy)
    call(backend=backend)
    assert entered[0] == backend == last_backend()


@calls
def test_auto_selects_the_first_backend_of_its_table(call):
    call()
    assert last_backend() == dispatch.AUTO["cpu"][0] == "cpu"


def test_backward_runs_where_forward_ran():
    query = INPUTS.query.clone().requires_grad_()
    for backend in testing.runnable_backends():
        scores = fused_dissim_score(query, *INPUTS[1:], backend=backend)
        fused_dissim_score(*INPUTS, backend="reference")
        scores.sum().backward()
        assert last_backend() == backend


@calls
def test_a_named_backend_raises_its_reason(call, broken_library):
    with pytest.raises(
        RuntimeError, match="'cpu' cannot run this call: the compiled library is broken for this test"
    ):
        call(backend="cpu")


@calls
def test_auto_raises_for_a_failed_build(call, broken_library):
    with pytest.raises(RuntimeError, match="'cpu' cannot run this call: the compiled library is broken"):
        call()
    call(backend="reference")
    assert last_backend() == "reference"


@calls
def test_unknown_backend_raises_with_the_names(call):
    with pytest.raises(ValueError, match=r"backend: expected 'auto' or one of 'cpu', .*'reference'.*, got 'gpu'"):
        call(backend="gpu")


def test_unavailable_backends_have_reasons(broken_library):
    reasons = unavailable_backends()
    assert sorted([*available_backends(), *reasons]) == sorted(dispatch.BACKENDS)
    assert reasons["cpu"] == "the compiled library is broken for this test"
    assert "reference" in available_backends()
    assert "not on 'cuda'" in native.unsupported_reason(Problem("score", torch.device("cuda", 0)))


#: Compute capabilities of five devices: a T4, an A100, an A10G, an H100 and a B200.
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0))


@pytest.fixture
def devices(monkeypatch):
    """Lets torch report these devices. Returns a function that sets what the library was compiled for."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: CAPABILITIES[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(triton, "_NOT_LOADED", None)
    caches = (capability._capability_of_index, cuda._unsupported_device_reason)

    def compiled_for(archs):
        monkeypatch.setattr(cuda, "compiled_archs", lambda: archs)
        for cached in caches:
            cached.cache_clear()

    yield compiled_for
    for cached in caches:
        cached.cache_clear()


def ran(index):
    """The backend that "auto" selects on that device."""
    module = dispatch.resolve("auto", Problem("score", torch.device("cuda", index)))
    return next(name for name, candidate in dispatch.BACKENDS.items() if candidate is module)


@pytest.mark.parametrize(
    ("archs", "chosen"),
    [
        ("8.0;9.0;10.0+PTX", ["cuda", "cuda", "cuda", "cuda"]),
        ("8.6", ["triton", "cuda", "triton", "triton"]),  # not for 8.0, nor for another major version
        ("8.0", ["cuda", "cuda", "triton", "triton"]),
        ("8.0+PTX", ["cuda", "cuda", "cuda", "cuda"]),
        ("8.6 9.0+PTX", ["triton", "cuda", "cuda", "cuda"]),
        ("9.0a+PTX", ["triton", "triton", "cuda", "triton"]),  # "a" is for that capability only
        ("", ["triton", "triton", "triton", "triton"]),
    ],
)
def test_each_device_gets_the_backend_that_runs_on_it(archs, chosen, devices):
    devices(archs)
    assert [ran(index) for index in (1, 2, 3, 4)] == chosen


def test_unsupported_device_raises_with_the_reasons_of_both_backends(devices):
    devices("8.0;9.0;10.0+PTX")
    with pytest.raises(RuntimeError) as raised:
        ran(0)
    assert str(raised.value) == (
        "backend 'cuda' cannot run this call: its kernels are compiled for compute capability 8.0;9.0;10.0+PTX, "
        "which do not run on cuda:0 (GPU 0, compute capability 7.5), and need 8.0 or more; "
        "backend 'triton' cannot run this call: it needs a GPU of compute capability 8.0 or more, this is "
        "cuda:0 (GPU 0, compute capability 7.5)"
    )


def test_a_named_backend_says_how_to_build_it_for_the_device(devices):
    devices("9.0")
    with pytest.raises(RuntimeError, match=r"cuda:2 \(GPU 2, .*\)\. Build it .*: TORCH_CUDA_ARCH_LIST=8\.6\+PTX"):
        dispatch.resolve("cuda", Problem("score", torch.device("cuda", 2)))


def test_device_capability_is_queried_once(devices, monkeypatch):
    devices("8.0")
    assert ran(1) == "cuda"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: pytest.fail("queried again"))
    assert ran(1) == "cuda"


def test_a_backend_is_available_where_one_device_runs_it(devices, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices("8.0")
    assert "cuda" in available_backends()
    devices("9.0")
    assert "compiled for compute capability 9.0" in unavailable_backends()["cuda"]


def test_every_backend_has_every_function():
    for order in dispatch.AUTO.values():
        assert set(order) <= set(dispatch.BACKENDS)
    for module in dispatch.BACKENDS.values():
        assert module.__doc__
        operations = ("score", "score_backward", "topk", "hinge", "hinge_backward", "logsumexp", "logsumexp_backward")
        for function in ("unsupported_reason", *operations, "listed_scores", "rank"):
            assert callable(getattr(module, function))


def test_python_m_dissim_kernels_prints_backends_with_reasons(monkeypatch, capsys):
    monkeypatch.setenv("DISSIM_THREADS", "3")
    runpy.run_module("dissim_kernels", run_name="__main__")
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    for name in available_backends():
        assert rows[f"backend {name}"].strip() == "available"
    for name, reason in unavailable_backends().items():
        assert rows[f"backend {name}"].strip() == f"not available: {reason}"
    assert torch.__version__ in rows["torch"] and "DISSIM_THREADS=3" in rows["environment"]
    assert torch.ops.dissim_native.isa() in rows["instruction set"]


def test_last_backend_is_thread_local():
    CALLS["score"](backend="reference")
    seen = []

    def other():
        with pytest.raises(RuntimeError, match="no dissim operator has run in this thread"):
            last_backend()
        CALLS["score"](backend="cpu")
        seen.append(last_backend())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == ["cpu"] and last_backend() == "reference"
