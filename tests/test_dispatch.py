"""Which backend runs: the one asked for, the first that can, or an error with every reason. Never a silent other."""

import threading

import pytest
import torch

from dissim_kernels import (
    available_backends,
    dispatch,
    fused_dissim_hinge_loss,
    fused_dissim_score,
    fused_dissim_topk,
    last_backend,
    paired_dissim_score,
)
from dissim_kernels import testing as judge
from dissim_kernels.backends import native
from dissim_kernels.contract import Problem

INPUTS = judge.random_inputs((4, 5), (4, 5))
SIDES = (torch.arange(4) % 2,) * 2
CALLS = {
    "score": lambda **x: fused_dissim_score(*INPUTS, **x),
    "paired": lambda **x: paired_dissim_score(*INPUTS, **x),
    "topk": lambda **x: fused_dissim_topk(*INPUTS, k=2, **x),
    "hinge": lambda **x: fused_dissim_hinge_loss(*INPUTS, *SIDES, **x),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def broken_library(monkeypatch):
    monkeypatch.setattr(native, "NOT_LOADED", "the compiled library is broken for this test")


@calls
@pytest.mark.parametrize("backend", judge.runnable_backends())
def test_a_named_backend_is_the_one_that_runs(backend, call, monkeypatch):
    """Proved by the module that was entered, not by what dispatch says of itself."""
    entered = []
    for name, module in dispatch.BACKENDS.items():
        for operation in ("score", "topk", "hinge"):
            function = getattr(module, operation)

            def spy(*args, _name=name, _function=function):
                entered.append(_name)
                return _function(*args)

            monkeypatch.setattr(module, operation, spy)
    call(backend=backend)
    assert entered[0] == backend == last_backend()


@calls
def test_auto_takes_the_first_of_its_table(call):
    call()
    assert last_backend() == dispatch.AUTO["cpu"][0] == "cpu"


def test_backward_runs_where_forward_ran():
    query = INPUTS.query.clone().requires_grad_()
    for backend in judge.runnable_backends():
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
def test_auto_never_hides_a_failed_build(call, broken_library):
    with pytest.raises(RuntimeError, match="'cpu' cannot run this call: the compiled library is broken"):
        call()
    call(backend="reference")
    assert last_backend() == "reference"


@calls
def test_an_unknown_backend_is_refused_with_the_names(call):
    with pytest.raises(ValueError, match=r"backend: expected 'auto' or one of 'cpu', .*'reference'.*, got 'gpu'"):
        call(backend="gpu")


def test_reasons_are_words(broken_library):
    assert set(available_backends()) == set(dispatch.BACKENDS)
    assert available_backends()["cpu"] == "the compiled library is broken for this test"
    assert available_backends()["reference"] is None
    assert "these are on 'cuda'" in native.why_not(Problem("score", "cuda", torch.float32))


def test_every_backend_in_the_tables_is_whole():
    for order in dispatch.AUTO.values():
        assert set(order) <= set(dispatch.BACKENDS)
    for module in dispatch.BACKENDS.values():
        assert module.__doc__
        for function in ("why_not", "score", "score_backward", "topk", "hinge", "hinge_backward"):
            assert callable(getattr(module, function))


def test_last_backend_is_of_this_thread():
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
