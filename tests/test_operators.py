"""Operators that are called without the public functions, as by exported programs, check their arguments."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dissim_kernels
from dissim_kernels import testing
from dissim_kernels.backends import native

compiled = pytest.mark.skipif(native.NOT_LOADED is not None, reason=str(native.NOT_LOADED))
Q, R, W, B = testing.random_inputs((6, 8), (9, 8))
QUERY_LABELS, REFERENCE_LABELS, EXCLUDE = torch.arange(6) % 3, torch.arange(9) % 3, torch.arange(6)
ONES, BITS = torch.ones(6), torch.zeros(6, 2, dtype=torch.uint8)
CODES = dissim_kernels.quantize_references(R, W)
CLUSTERS = dissim_kernels.cluster_references(R, W)
#: Lists of pairs, two for each query: where they begin, references, and scores, best first.
LISTS = torch.arange(7) * 2, torch.arange(12) % 9, torch.tensor([1.0, 0.0] * 6)

#: operator -> valid arguments
CALLS = {
    "score": {"query": Q[None], "reference": R[None], "weight": W[None], "bias": B[None], "backend": "auto"},
    "score_backward": {"grad": torch.ones(1, 1, 6, 9), "query": Q[None], "reference": R[None], "weight": W[None],
                       "backend": "auto", "need_query": True, "need_reference": True, "need_weight": True},
    "score_jvp": {"query": Q[None], "reference": R[None], "weight": W[None], "query_tangent": Q[None],
                  "reference_tangent": R[None], "weight_tangent": W[None], "bias_tangent": B[None]},
    "topk": {"query": Q, "reference": R, "weight": W, "bias": None, "k": 2, "largest": True, "exclude_index": EXCLUDE,
             "query_labels": QUERY_LABELS, "reference_labels": REFERENCE_LABELS, "among": "same", "backend": "auto"},
    "hinge": {"query": Q, "reference": R, "weight": W, "bias": None, "query_labels": QUERY_LABELS,
              "reference_labels": REFERENCE_LABELS, "exclude_index": EXCLUDE, "margin": 1.0, "num_hard_negatives": 2,
              "backend": "auto"},
    "hinge_backward": {"grad_positive": ONES, "grad_negative": ONES, "active": BITS, "query": Q, "reference": R,
                       "weight": W, "query_labels": QUERY_LABELS, "reference_labels": REFERENCE_LABELS,
                       "needs": [True] * 4, "backend": "auto"},
    "quantized_topk": {"query": Q, "reference": R, "weight": W, "bias": None, "k": 2, "largest": True,
                       "exclude_index": None, "query_labels": None, "reference_labels": None, "among": "all",
                       "codes": list(CODES[:-1]), "rows": 9,
                       "backend": "auto"},
    "clustered_topk": {"query": Q, "reference": R, "weight": W, "bias": None, "k": 2, "largest": True,
                       "exclude_index": None, "query_labels": None, "reference_labels": None, "among": "all",
                       "clusters": list(CLUSTERS[:-1]), "rows": 9, "backend": "auto"},
    "logsumexp": {"query": Q, "reference": R, "weight": W, "bias": None, "scale": ONES[:1],
                  "query_labels": QUERY_LABELS, "reference_labels": REFERENCE_LABELS, "exclude_index": EXCLUDE,
                  "among": "different", "backend": "auto"},
    "logsumexp_backward": {"grad": ONES, "value": ONES, "active": BITS, "query": Q, "reference": R, "weight": W,
                           "bias": None, "scale": ONES[:1], "needs": [True] * 3, "backend": "auto"},
    "listed_scores": {"query": Q, "reference": R, "weight": W, "bias": None, "offsets": LISTS[0], "indices": LISTS[1],
                      "backend": "auto"},
    "rank": {"query": Q, "reference": R, "weight": W, "bias": None, "offsets": LISTS[0], "indices": LISTS[1],
             "scores": LISTS[2], "backend": "auto"},
}  # fmt: skip
NATIVE_CALLS = {
    "score": {**CALLS["score"], "out": torch.empty(1, 1, 6, 9)},
    "score_backward": {**CALLS["score_backward"], "grad_query": torch.empty(1, 6, 8), "grad_reference": None,
                       "grad_weight": torch.empty(1, 8)},
    "topk": {**CALLS["topk"], "query": Q[None], "reference": R[None], "among": True, "scores": torch.empty(6, 2),
             "indices": torch.empty(6, 2, dtype=torch.int64)},
    "hinge": {**CALLS["hinge"], "query": Q[None], "reference": R[None], "positive": torch.empty(6),
              "negative": torch.empty(6), "active": BITS.clone()},
    "hinge_backward": {**CALLS["hinge_backward"], "query": Q[None], "reference": R[None], "grad_query": None,
                       "grad_reference": torch.empty(9, 8), "grad_weight": None, "grad_bias": torch.empty(1)},
    "clustered_topk": {**CALLS["topk"], "query": Q[None], "reference": R[None], "among": True,
                       "pivots": CLUSTERS.pivots[None], "order": CLUSTERS.order, "offsets": CLUSTERS.offsets,
                       "radii": CLUSTERS.radii, "center": CLUSTERS.center, "scores": torch.empty(6, 2),
                       "indices": torch.empty(6, 2, dtype=torch.int64), "slack": torch.empty(6, dtype=torch.float64),
                       "scored": torch.empty(6, dtype=torch.int64)},
    "logsumexp": {"query": Q[None], "reference": R[None], "weight": W, "bias": None, "scale": ONES[:1],
                  "exclude_index": EXCLUDE, "query_labels": QUERY_LABELS, "reference_labels": REFERENCE_LABELS,
                  "among_same": False, "value": torch.empty(6), "mean_score": torch.empty(6), "active": BITS.clone()},
    "logsumexp_backward": {**CALLS["logsumexp_backward"], "query": Q[None], "reference": R[None],
                           "grad_query": torch.empty(6, 8), "grad_reference": None, "grad_weight": torch.empty(8)},
    "listed_scores": {**CALLS["listed_scores"], "query": Q[None], "reference": R[None], "scores": torch.empty(12)},
    "rank": {**CALLS["rank"], "query": Q[None], "reference": R[None],
             "counts": torch.empty(12, dtype=torch.int64), "nan_rows": torch.empty(6, dtype=torch.uint8)},
}  # fmt: skip
for name, arguments in NATIVE_CALLS.items():
    NATIVE_CALLS[name] = {k: v for k, v in arguments.items() if k not in ("backend", "needs") and k[:5] != "need_"}

ALL, LISTED = tuple(CALLS), ("listed_scores", "rank")
MATRIX = ("topk", "hinge", "hinge_backward", "quantized_topk", "clustered_topk", "logsumexp", "logsumexp_backward",
          *LISTED)  # fmt: skip
PAIRS, LABELED = ("score", "score_backward", *MATRIX), ("topk", "hinge", "logsumexp")
#: Operators, the changed argument, its change, the error.
BAD = [
    (PAIRS, "query", lambda x: x[..., :-4], "reference: expected float32 .* 4\\] on cpu, got float32 .* 8\\] on cpu"),
    (PAIRS, "reference", lambda x: x[..., :-4], "reference: expected float32 .* 8\\] on cpu, got float32"),
    (PAIRS, "weight", lambda x: x[..., :-4], "weight: expected float32 .*8\\] on cpu, got float32"),
    (PAIRS, "query", lambda x: x[0], "query: expected .* \\[any, any"),
    (PAIRS, "query", torch.Tensor.long, "query: expected float16 or bfloat16 or float32 or float64"),
    (PAIRS, "query", lambda x: None, "query: expected a torch.Tensor, got NoneType"),
    (PAIRS, "reference", torch.Tensor.half, "reference: expected float32 .* got float16"),
    (PAIRS, "reference", lambda x: x.to_sparse(), "reference: expected a dense tensor, got torch.sparse_coo"),
    (PAIRS, "weight", torch.Tensor.long, "weight: expected float32 .* got int64"),
    (PAIRS, "weight", lambda x: x.to("meta"), "weight: expected .* on cpu, got .* on meta"),
    (PAIRS, "backend", lambda x: "gpu", "backend: expected 'auto' or one of"),
    (("score",), "bias", lambda x: x.repeat(2), "bias: expected float32 \\[1\\] on cpu, got float32 \\[2\\]"),
    (("score_backward",), "grad", lambda x: x[..., :-1], "grad: expected float32 \\[1, 1, 6, 9\\]"),
    (("score_backward",), "grad", torch.Tensor.double, "grad: expected float32 .* got float64"),
    (("score_jvp",), "query_tangent", lambda x: x[..., :-1], "query_tangent: expected float32 \\[1, 6, 8"),
    (("score_jvp",), "reference_tangent", lambda x: x[:, :1], "reference_tangent: expected float32 \\[1, 9, 8"),
    (("score_jvp",), "weight_tangent", torch.Tensor.long, "weight_tangent: expected float32 .* got int64"),
    (("score_jvp",), "bias_tangent", lambda x: x.repeat(2), "bias_tangent: expected float32 \\[1\\]"),
    ((*LABELED, "hinge_backward"), "query_labels", lambda x: x[:1], "query_labels: expected shape \\[6\\]"),
    ((*LABELED, "hinge_backward"), "reference_labels", lambda x: x[:1], "reference_labels: expected shape"),
    (LABELED, "query_labels", torch.Tensor.int, "query_labels: expected dtype int64"),
    (LABELED, "exclude_index", lambda x: x[:1], "exclude_index: expected shape \\[6\\]"),
    (LABELED, "exclude_index", lambda x: x.to_sparse(), "exclude_index: expected a dense tensor"),
    (
        ("topk", "logsumexp"),
        "query_labels",
        lambda x: None,
        "query_labels: expected labels, since the other",
    ),
    (
        ("topk", "logsumexp", "quantized_topk", "clustered_topk"),
        "among",
        lambda x: "",
        "among: expected one of 'different', 'same', 'all'",
    ),
    (("quantized_topk",), "among", lambda x: "same", "query_labels: expected labels, for among='same', got None"),
    (("logsumexp", "logsumexp_backward"), "scale", torch.Tensor.double, "scale: expected float32 \\[1\\]"),
    (("logsumexp", "logsumexp_backward"), "scale", lambda x: x.repeat(2), "scale: expected float32 \\[1\\]"),
    (("logsumexp_backward",), "grad", lambda x: x[:1], "grad: expected float32 \\[6\\]"),
    (("logsumexp_backward",), "value", torch.Tensor.half, "value: expected float32 \\[6\\]"),
    (("logsumexp_backward",), "active", lambda x: x[:, :1], "active: expected uint8 \\[6, 2\\]"),
    (("logsumexp_backward",), "needs", lambda x: x[:2], "needs: expected 3 flags"),
    (LISTED, "offsets", lambda x: x[:-1], "offsets: expected int64 \\[7\\]"),
    (LISTED, "offsets", torch.Tensor.int, "offsets: expected int64 \\[7\\] on cpu, got int32"),
    (
        LISTED,
        "offsets",
        lambda x: x - 1,
        "offsets: expected numbers that ascend from 0 to 12, .* -1 to 11",
    ),
    (LISTED, "offsets", lambda x: x[[0, 2, 1, 3, 4, 5, 6]], "offsets: expected numbers that ascend .* that descend"),
    (LISTED, "indices", lambda x: x.view(6, 2), "indices: expected int64 \\[any\\]"),
    (("listed_scores",), "indices", lambda x: x + 1, "indices: expected rows of reference, 0 to 8, got 1 to 9"),
    (("listed_scores",), "indices", lambda x: x - 1, "indices: expected rows of reference, 0 to 8, got -1 to 7"),
    (("rank",), "scores", lambda x: x[:-1], "scores: expected float32 \\[12\\]"),
    (("topk", "quantized_topk"), "k", lambda x: -1, "k: expected an integer of at least 0, got -1"),
    (("topk", "quantized_topk"), "k", lambda x: 10, "k: expected at most the 9 rows of reference, got 10"),
    (("hinge",), "num_hard_negatives", lambda x: -1, "num_hard_negatives: expected an integer of at least 0"),
    (("hinge_backward",), "grad_positive", torch.Tensor.double, "grad_positive: expected float32"),
    (("hinge_backward",), "grad_negative", lambda x: x[:1], "grad_negative: expected float32 \\[6\\]"),
    (("hinge_backward",), "active", lambda x: x[:, :1], "active: expected uint8 \\[6, 2\\]"),
    (("hinge_backward",), "needs", lambda x: x[:2], "needs: expected 4 flags"),
    (("quantized_topk",), "rows", lambda x: 8, "quantized: expected codes of 9 references, got codes of 8"),
    (("clustered_topk",), "k", lambda x: 10, "k: expected at most the 9 rows of reference, got 10"),
    (("clustered_topk",), "rows", lambda x: 8, "clusters: expected clusters of 9 references, got clusters of 8"),
    (
        ("clustered_topk",),
        "clusters",
        lambda x: x[1:],
        "clusters: expected the tensors of a ClusteredReferences, got 5",
    ),
    (
        ("quantized_topk",),
        "codes",
        lambda x: x[:5],
        "codes: expected the tensors of a QuantizedReferences, got 5 tensors",
    ),
]
ROWS = [(name, *row[1:]) for row in BAD for name in row[0]]


def raises(namespace, name, arguments, message):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        getattr(getattr(torch.ops, namespace), name)(*arguments.values())
    assert re.search(f"(^|\n){message}.*\\. [A-Z].+\\.$", str(error.value)), str(error.value)


@pytest.mark.parametrize("name", ALL)
def test_valid_arguments_are_accepted(name):
    getattr(torch.ops.dissim, name)(*CALLS[name].values())


@pytest.mark.parametrize(
    ("name", "argument", "change", "message"),
    ROWS,
    ids=[f"{i}-{name}-{what}" for i, (name, what, *_) in enumerate(ROWS)],
)
def test_registered_operators_raise_for_invalid_arguments(name, argument, change, message):
    raises("dissim", name, CALLS[name] | {argument: change(CALLS[name][argument])}, message)


def test_traced_calls_are_checked_as_well():
    """Otherwise a meta tensor among CPU tensors would give a result that is never written."""
    with pytest.raises(ValueError, match=r"reference: expected float32 .* on cpu, got .* on meta"):
        torch.ops.dissim.topk(*(CALLS["topk"] | {"reference": R.to("meta")}).values())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match="weight: exp"):
        torch.ops.dissim.score(*(CALLS["score"] | {"weight": W[None, :3]}).values())


@compiled
@pytest.mark.parametrize("name", ["score", "topk", "hinge_backward", "rank"])
def test_more_dimensions_than_int32_holds_raise(name):
    """The kernels store dimensions as int32. Nothing of this size is allocated."""
    sides = {side: torch.zeros(1, 1, 1).expand(1, 1, 2**31) for side in ("query", "reference")}
    raises(
        "dissim_native", name, NATIVE_CALLS[name] | sides, r"query: expected fewer than 2\*\*31 dim.*, got 2147483648"
    )


NATIVE, SHRUNK = tuple(NATIVE_CALLS), "reference: expected a storage of at least 288 bytes, got 100"


def shrink(rows):
    rows = rows.clone()
    rows.untyped_storage().resize_(100)
    return rows


NATIVE_BAD = [
    (NATIVE, "query", lambda x: None, "query: expected a tensor, got none"),
    (NATIVE, "query", torch.Tensor.long, "query: expected float16, bfloat16, float32 or float64, got int64"),
    (NATIVE, "query", lambda x: x[0], "query: expected float32 \\[.*any, any\\] on cpu, got float32 \\[6, 8\\]"),
    (NATIVE, "reference", torch.Tensor.half, "reference: expected float32 .* got float16"),
    (NATIVE, "reference", lambda x: x[..., :-1], "reference: expected float32 \\[1, any, 8\\] on cpu, got .* 7\\]"),
    (NATIVE, "reference", shrink, SHRUNK),
    (NATIVE, "weight", torch.Tensor.double, "weight: expected contiguous float32"),
    (NATIVE, "weight", lambda x: x[..., :1].expand(x.shape), "weight: expected contiguous float32 .* strides"),
    (("score",), "bias", lambda x: x.repeat(2), "bias: expected contiguous float32 \\[1\\]"),
    (("score",), "out", lambda x: x[..., :-1], "out: expected contiguous float32 \\[1, 1, 6, 9\\]"),
    (
        ("score",),
        "out",
        lambda x: x.mT.contiguous().mT,
        "out: expected contiguous float32 .* strides \\[54, 54, 1, 6",
    ),
    (("score",), "out", lambda x: x[:, :, :, :1].expand(x.shape), "out: expected contiguous float32"),
    (("score",), "out", torch.Tensor.half, "out: expected contiguous float32 .* got float16"),
    (("score_backward",), "grad", lambda x: x[..., :-1], "grad: expected float32 \\[1, 1, 6, 9\\]"),
    (("score_backward",), "grad_query", lambda x: x[:, :5], "grad_query: expected contiguous float32 \\[1, 6, 8\\]"),
    (
        ("score_backward",),
        "grad_weight",
        lambda x: CALLS["score"]["weight"],
        "grad_weight: expected memory of its own",
    ),
    (("topk",), "k", lambda x: 10, "k: expected an integer from 0 to 9, got 10"),
    (("topk",), "k", lambda x: -1, "k: expected an integer from 0 to 9, got -1"),
    (("topk",), "indices", torch.Tensor.int, "indices: expected contiguous int64 \\[6, 2\\]"),
    (
        ("topk", "logsumexp"),
        "query_labels",
        lambda x: None,
        "query_labels: expected labels, since the other",
    ),
    (LABELED, "reference_labels", lambda x: x[:1], "reference_labels: expected contiguous int64 \\[9\\]"),
    (
        LABELED,
        "exclude_index",
        torch.Tensor.int,
        "exclude_index: expected contiguous int64 \\[6\\] on cpu, got int32",
    ),
    (("hinge",), "num_hard_negatives", lambda x: -2, "num_hard_negatives: expected an integer from -1"),
    (("hinge",), "active", lambda x: x[:, :1].contiguous(), "active: expected contiguous uint8 \\[6, 2\\]"),
    (("hinge_backward", "logsumexp_backward"), "active", lambda x: x + 128, "active: expected unused bits of 0"),
    (("logsumexp",), "active", lambda x: x[:, :1].contiguous(), "active: expected contiguous uint8 \\[6, 2\\]"),
    (("logsumexp",), "value", torch.Tensor.double, "value: expected contiguous float32 \\[6\\]"),
    (("logsumexp", "logsumexp_backward"), "scale", lambda x: x[:0], "scale: expected contiguous float32 \\[1\\]"),
    (("logsumexp_backward",), "grad", lambda x: x[:1], "grad: expected contiguous float32 \\[6\\]"),
    (LISTED, "offsets", lambda x: x[:-1], "offsets: expected contiguous int64 \\[7\\]"),
    (LISTED, "offsets", lambda x: x - 1, "offsets: expected numbers that ascend from 0 to 12"),
    (LISTED, "offsets", lambda x: x[[0, 2, 1, 3, 4, 5, 6]], "offsets: expected numbers that ascend from 0 to 12"),
    (LISTED, "indices", torch.Tensor.int, "indices: expected contiguous int64 \\[any\\] on cpu, got int32"),
    (("listed_scores",), "indices", lambda x: x + 1, "indices: expected an integer from 0 to 8, got 9"),
    (("listed_scores",), "indices", lambda x: x - 1, "indices: expected an integer from 0 to 8, got -1"),
    (("listed_scores",), "scores", lambda x: x[:-1], "scores: expected contiguous float32 \\[12\\]"),
    (("rank",), "scores", lambda x: x[:-1], "listed_scores: expected contiguous float32 \\[12\\]"),
    (("rank",), "counts", torch.Tensor.int, "counts: expected contiguous int64 \\[12\\]"),
    (("rank",), "nan_rows", torch.Tensor.int, "nan_rows: expected contiguous uint8 \\[6\\] on cpu, got int32"),
    (("hinge_backward",), "grad_positive", torch.Tensor.double, "grad_positive: expected contiguous float32 \\[6\\]"),
]
NATIVE_ROWS = [(name, *row[1:]) for row in NATIVE_BAD for name in row[0]]


@compiled
@pytest.mark.parametrize("name", NATIVE)
def test_native_operators_accept_valid_arguments(name):
    getattr(torch.ops.dissim_native, name)(*NATIVE_CALLS[name].values())


@compiled
@pytest.mark.parametrize(
    ("name", "argument", "change", "message"),
    NATIVE_ROWS,
    ids=[f"{i}-{name}-{what}" for i, (name, what, *_) in enumerate(NATIVE_ROWS)],
)
def test_native_operators_raise_for_invalid_arguments(name, argument, change, message):
    arguments = NATIVE_CALLS[name]
    raises("dissim_native", name, arguments | {argument: change(arguments[argument])}, message)


@compiled
def test_native_quantize_raises_for_invalid_dim_order():
    dim_order, *others = CODES[2:6]
    outputs = (torch.empty_like(CODES.codes), torch.empty_like(CODES.error_bounds), None)
    for wrong in (8, -1):
        arguments = (R[None], dim_order.clone().fill_(wrong), *others, 0, 1.0, 0.0, *outputs)
        with pytest.raises(RuntimeError, match=f"dim_order: expected an integer from 0 to 7, got {wrong}"):
            torch.ops.dissim_native.quantize(*arguments)


@compiled
def test_native_gradients_of_no_pairs_are_zeros():
    grads = [torch.full(size, torch.nan) for size in ((1, 6, 8), (1, 0, 8), (1, 8))]
    torch.ops.dissim_native.score_backward(torch.empty(1, 1, 6, 0), Q[None], R[None, :0], W[None], *grads)
    assert all((grad == 0).all() for grad in grads)


def calls_of_public_functions():
    codes = dissim_kernels.quantize_references(R, W)
    return [
        dissim_kernels.fused_dissim_score(Q, R, W, 0.5),
        dissim_kernels.paired_dissim_score(Q, R[:6], W),
        *dissim_kernels.fused_dissim_topk(Q, R, W, k=3, exclude_index=EXCLUDE),
        *dissim_kernels.fused_dissim_topk(Q, R, W, k=3, quantized=codes),
        *dissim_kernels.fused_dissim_topk(Q, R, W, 0.5, k=3, quantized=codes, return_stats=True),
        *dissim_kernels.fused_dissim_topk(Q, R, W, k=3, clusters=dissim_kernels.cluster_references(R, W)),
        dissim_kernels.fused_dissim_hinge_loss(
            Q, R, W, 0.5, QUERY_LABELS, REFERENCE_LABELS, num_hard_negatives=2, exclude_index=EXCLUDE
        ),
        dissim_kernels.fused_dissim_hinge_loss(Q, R, W, 0.5, QUERY_LABELS, REFERENCE_LABELS, backend="reference"),
        dissim_kernels.fused_dissim_logsumexp(Q, R, W, 0.5, scale=2.0, among="all", exclude_index=EXCLUDE),
        *dissim_kernels.fused_dissim_rank(
            Q, R, W, 0.5, query_labels=QUERY_LABELS, reference_labels=REFERENCE_LABELS, return_scores=True
        ),
    ]


def test_the_default_device_does_not_matter():
    expected = calls_of_public_functions()
    with torch.device("meta"):
        found = calls_of_public_functions()
    for a, b in zip(found, expected, strict=True):
        assert a.device.type == "cpu" and torch.equal(a, b)


@compiled
def test_a_short_seed_of_the_fuzzing():
    """A short run. The long one is in tests/stress."""
    fuzz = [sys.executable, Path(__file__).parent / "fuzz", "--count", "1500"]
    done = subprocess.run(fuzz, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{3,} compared, \d{3,} raised, \d+ ran", done.stdout), done.stdout
