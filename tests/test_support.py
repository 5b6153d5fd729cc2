"""The support matrix of the documentation and its summary in the README, checked against the code.

Every cell that a CPU can test is tested. The other cells must agree with the tests: "by emulation" with those that
execute the CUDA sources on the CPU, "by interpreter" with Triton's interpreter, which runs this file once more.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_on_host import selected

import dissim_kernels as d
import dissim_kernels.numpy
from dissim_kernels import testing

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "support.md").read_text()
README = (ROOT / "README.md").read_text()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = testing.runnable_backends()


def table(heading, document=PAGE):
    """The table below a heading, without backquotes: {row name: {column name: cell}}."""
    section = document.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.replace("`", "").strip("| ") for line in section.splitlines() if line.startswith("|")]
    header, _, *rows = [re.split(r"\s*\|\s*", line) for line in lines]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


OPERATIONS, DTYPES, FEATURES = map(table, ("Operations and backends", "Dtypes", "Autograd and transforms"))


def function_of(operation):
    """The public function of an operation, which may be a function with an argument."""
    return operation.split("(")[0]


#: Column of the README's table -> operation
README_COLUMNS = {
    "all-pairs score": "fused_dissim_score",
    "paired score": "paired_dissim_score",
    "top-k": "fused_dissim_topk",
    "top-k, quantized": "fused_dissim_topk(quantized=)",
    "top-k, clusters": "fused_dissim_topk(clusters=)",
    "hinge loss": "fused_dissim_hinge_loss",
    "log-sum-exp": "fused_dissim_logsumexp",
    "ranks": "fused_dissim_rank",
}

LABELS = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1, 0, 2])


def paired(score):
    """The function `score` of pairs: it gets as many references as queries."""
    return lambda query, reference, *head, **options: score(query, reference[: len(query)], *head, **options)


def quantized_topk(query, reference, weight, bias, backend):
    codes = CODES if torch.compiler.is_compiling() else d.quantize_references(reference, weight)
    return d.fused_dissim_topk(query, reference, weight, bias, k=2, quantized=codes, backend=backend).scores


def clustered_topk(query, reference, weight, bias, backend):
    # Made in the call only for other dtypes: it draws random numbers, which vmap and torch.compile do not allow.
    clusters = CLUSTERS if reference.dtype == torch.float64 else d.cluster_references(reference, weight)
    return d.fused_dissim_topk(query, reference, weight, bias, k=2, clusters=clusters, backend=backend).scores


def scores_in_the_order_of_ranks(query, reference, weight, bias, backend):
    """The ranks of all references, which have one label here, by the scores that they give an order."""
    labels = [torch.zeros(len(x), dtype=torch.int64) for x in (query, reference)]
    found = d.fused_dissim_rank(query, reference, weight, bias, query_labels=labels[0], reference_labels=labels[1],
                                return_scores=True, backend=backend)  # fmt: skip
    ranks, scores = found.ranks.view(len(query), -1), found.scores.view(len(query), -1)
    return scores.gather(1, (-ranks).argsort(1)).to(query.dtype)


#: operation -> (how it is called, what it equals)
CALLS = {
    "fused_dissim_score": (d.fused_dissim_score, testing.plain_score),
    "paired_dissim_score": (
        paired(d.paired_dissim_score),
        paired(lambda q, r, w, b: ((q - r).abs() * w).sum(-1) + b),
    ),
    "fused_dissim_topk": (
        lambda *inputs, backend: d.fused_dissim_topk(*inputs, k=2, backend=backend).scores,
        lambda *inputs: testing.plain_score(*inputs).topk(2).values,
    ),
    "fused_dissim_topk(quantized=)": (quantized_topk, lambda *inputs: testing.plain_score(*inputs).topk(2).values),
    "fused_dissim_topk(clusters=)": (clustered_topk, lambda *inputs: testing.plain_score(*inputs).topk(2).values),
    "fused_dissim_hinge_loss": (
        lambda *inputs, backend: d.fused_dissim_hinge_loss(*inputs, *LABELS, backend=backend),
        lambda *inputs: testing.plain_hinge_loss(testing.plain_score(*inputs), *LABELS),
    ),
    "fused_dissim_logsumexp": (
        lambda *inputs, backend: d.fused_dissim_logsumexp(*inputs, among="all", backend=backend),
        lambda *inputs: testing.plain_score(*inputs).logsumexp(1),
    ),
    "fused_dissim_rank": (scores_in_the_order_of_ranks, lambda *inputs: testing.plain_score(*inputs).sort().values),
}


def inputs(dtype=torch.float64):
    return testing.random_inputs((3, 4), (5, 4), dtype=dtype)


CODES = d.quantize_references(inputs().reference, inputs().weight)
CLUSTERS = d.cluster_references(inputs().reference, inputs().weight)


def derivatives(function, order):
    """The gradients of order 1 or 2 of sums of squares: of the function's value, then of its gradients."""
    leaves = [x.requires_grad_() for x in inputs()]
    value = function(*leaves)
    for _ in range(order):
        gradients = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
        value = torch.cat([g.flatten() for g in gradients])
    return value.detach()


def compiled(function):
    torch.compiler.reset()  # the cases share a function, and torch limits how often one is compiled
    return torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs())


def exported(function):
    class Program(torch.nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    return torch.export.export(Program(), tuple(inputs())).module()(*inputs())


#: Column -> what is computed for the operation and for its plain definition. Captured programs give plain values.
ATTEMPTS = {
    "gradient": lambda function: derivatives(function, 1),
    "second derivative": lambda function: derivatives(function, 2),
    "forward mode": lambda function: torch.func.jvp(function, tuple(inputs()), tuple(x.cos() for x in inputs()))[1],
    "vmap": lambda function: torch.vmap(function, (0, None, None, None))(
        torch.stack([inputs().query, -inputs().query]), *inputs()[1:]
    ),
    "torch.compile": compiled,
    "torch.export": exported,
}
CAPTURED = ("torch.compile", "torch.export")
assert set(ATTEMPTS) == set(next(iter(FEATURES.values()))) - {"CUDA graph"}


def test_the_tables_have_every_operation_and_dtype():
    assert set(OPERATIONS) == set(FEATURES) == set(CALLS)
    assert {function_of(name) for name in CALLS} == {name for name in d.__all__ if "_dissim_" in name}
    assert {getattr(torch, name) for name in DTYPES} == set(testing.ACCUMULATE)
    for name, row in DTYPES.items():
        assert getattr(torch, row["accumulated in"]) == testing.ACCUMULATE[getattr(torch, name)]


def test_the_readme_has_the_same_cells():
    """The README's table is the transpose of the page's."""
    assert set(README_COLUMNS.values()) == set(OPERATIONS)
    assert table("Support matrix", README) == {
        row: {column: cells[operation][row] for column, operation in README_COLUMNS.items()}
        for cells in (OPERATIONS, FEATURES)
        for row in next(iter(cells.values()))
    }
    assert f"Dtypes: {', '.join(DTYPES)}; the last not in `numpy`." in README
    assert [dtype for dtype, row in DTYPES.items() if row["numpy"] == "no"] == [list(DTYPES)[-1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_of_a_backend(operation, backend):
    call, plain = CALLS[operation]
    cell = OPERATIONS[operation][backend]
    if cell == "plain scan":
        with pytest.warns(UserWarning, match=f"backend '{backend}' does not use (quantized|clusters)"):
            scores = call(*inputs(), backend=backend)
    else:
        assert cell == ("by interpreter" if backend == "triton" else "tested")
        scores = call(*inputs(), backend=backend)
    torch.testing.assert_close(scores, plain(*inputs()))
    assert d.last_backend() == backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_dtype_of_a_backend(operation, dtype, backend):
    assert DTYPES[dtype][backend] == ("by interpreter" if backend == "triton" else "tested")
    call, plain = CALLS[operation]
    given = inputs(getattr(torch, dtype))
    result = call(*given, backend=backend)
    assert result.dtype == given.query.dtype or operation in ("fused_dissim_hinge_loss", "fused_dissim_logsumexp")
    error = (result.double() - plain(*given.double())).abs().max()
    assert error <= testing.score_bound(*given).max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("feature", ATTEMPTS)
@pytest.mark.parametrize("operation", FEATURES)
def test_feature_of_an_operation(operation, feature, backend):
    call, plain = CALLS[operation]

    def function(*inputs):
        return call(*inputs, backend=backend)

    if FEATURES[operation][feature] == "no":
        with pytest.raises(NotImplementedError, match=function_of(operation)):
            ATTEMPTS[feature](function)
    elif FEATURES[operation][feature] == "graph break":
        with pytest.raises(torch._dynamo.exc.Unsupported, match=function_of(operation)):
            ATTEMPTS[feature](function)
        torch.testing.assert_close(torch.compile(function, backend="aot_eager")(*inputs()), plain(*inputs()))
    else:
        assert FEATURES[operation][feature] == "yes"
        expected = plain(*inputs()) if feature in CAPTURED else ATTEMPTS[feature](plain)
        torch.testing.assert_close(ATTEMPTS[feature](function), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy(dtype):
    assert {name for name, row in OPERATIONS.items() if row["numpy"] == "tested"} == {
        f"fused_dissim_{name}" for name in dissim_kernels.numpy.__all__ if name.islower() and name != "build_info"
    }
    given = inputs(getattr(torch, dtype))
    if DTYPES[dtype]["numpy"] == "no":
        assert not hasattr(np, dtype)
        return
    arrays = [x.numpy() for x in given]
    error = np.abs(dissim_kernels.numpy.score(*arrays) - testing.plain_score(*given.double()).numpy())
    assert (error <= testing.score_bound(*given).numpy()).all()
    best = dissim_kernels.numpy.topk(*arrays, k=2)
    assert np.array_equal(best.indices, d.fused_dissim_topk(*given, k=2).indices.numpy())


def test_codes_have_no_gradient():
    codes = d.quantize_references(inputs().reference.requires_grad_(), inputs().weight.requires_grad_())
    assert not any(tensor.requires_grad for tensor in codes[:-1])  # the last is the number of rows


def test_cells_marked_by_emulation_are_emulated():
    """test_cuda.py runs the test files of all operations with the CUDA sources."""
    for operation, row in OPERATIONS.items():
        assert row["cuda"] == ("plain scan" if "clusters" in operation else "by emulation")
        assert any(function_of(operation) in (ROOT / "tests" / file).read_text() for file in selected.FILES)
    assert {row["cuda"] for row in DTYPES.values()} == {"by emulation"}


@pytest.mark.skipif(INTERPRETED, reason="this is the process of the interpreter")
def test_triton_by_its_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "triton", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert done.stdout.count(".") >= 40
