"""Input validation: every error names the argument, what was expected, what was given, and a remedy."""

import re

import pytest
import torch

from dissim_kernels import (
    fused_dissim_hinge_loss,
    fused_dissim_logsumexp,
    fused_dissim_rank,
    fused_dissim_score,
    fused_dissim_topk,
    paired_dissim_score,
)
from dissim_kernels.contract import ACCUMULATE

GOOD = {"query": torch.ones(4, 3), "reference": torch.ones(5, 3), "weight": torch.ones(3), "bias": None}
FOUR, FIVE = torch.zeros(4, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
FUNCTIONS = {
    "score": (fused_dissim_score, {}),
    "paired": (paired_dissim_score, {"reference": torch.ones(4, 3)}),
    "topk": (fused_dissim_topk, {"k": 2}),
    "hinge": (fused_dissim_hinge_loss, {"query_labels": FOUR, "reference_labels": FIVE}),
    "logsumexp": (fused_dissim_logsumexp, {"among": "all"}),
    "rank": (fused_dissim_rank, {"query_labels": FOUR, "reference_labels": FIVE}),
}
ALL, MATRIX, LABELED = tuple(FUNCTIONS), ("topk", "hinge", "logsumexp", "rank"), ("hinge", "rank")
HALF = torch.ones(4, 3, dtype=torch.float16)

#: Of the four queries, without any match.
LISTS = {"positive_offsets": FIVE, "positive_indices": FIVE[:0], "positive_scores": torch.ones(0)}

#: Functions, the changed argument, the error, the argument it names, expected, got.
BAD = [
    (ALL, {"query": [[1.0]]}, TypeError, "query", "a torch.Tensor", "list"),
    (ALL, {"reference": None}, TypeError, "reference", "a torch.Tensor", "NoneType"),
    (ALL, {"weight": 1.0}, TypeError, "weight", "a torch.Tensor", "float"),
    (ALL, {"query": torch.ones(4, 3).to_sparse()}, TypeError, "query", "a dense tensor", "torch.sparse_coo"),
    (ALL, {"query": torch.ones(4, 3).long()}, TypeError, "query", "one of torch.float16", "torch.int64"),
    (ALL, {"query": torch.ones(4, 3).cfloat()}, TypeError, "query", "one of torch.float16", "torch.complex64"),
    (ALL, {"query": HALF}, TypeError, "reference", "query's dtype torch.float16", "torch.float32"),
    (ALL, {"weight": torch.ones(3).double()}, TypeError, "weight", "torch.float32 with", "torch.float64"),
    (ALL, {"bias": torch.ones((), dtype=torch.int64)}, TypeError, "bias", "torch.float32 with", "torch.int64"),
    (ALL, {"bias": "1"}, TypeError, "bias", "None, a number or a tensor", "str"),
    (ALL, {"bias": torch.ones(2)}, ValueError, "bias", r"a number or shape \[\] for weight", r"shape \[2\]"),
    (("score",), {"weight": torch.ones(2, 3), "bias": torch.ones(3)}, ValueError, "bias", r".*\[2\]", r"shape \[3"),
    (ALL, {"weight": torch.ones(())}, ValueError, "weight", r"\[D\] or \[C, D\]", r"shape \[\]"),
    (ALL, {"weight": torch.ones(1, 1, 3)}, ValueError, "weight", r"\[D\] or \[C, D\]", r"shape \[1, 1, 3\]"),
    (ALL, {"weight": torch.ones(4)}, ValueError, "weight", "a last dimension of 3", r"shape \[4\]"),
    (ALL, {"reference": torch.ones(4, 1)}, ValueError, "reference", "a last dimension of 3", r"shape \[4, 1\]"),
    (ALL, {"reference": torch.ones(4, 3, device="meta")}, ValueError, "reference", "query's device cpu", "meta"),
    (ALL, {"weight": torch.ones(3, device="meta")}, ValueError, "weight", "query's device cpu", "meta"),
    (ALL, {"bias": torch.ones((), device="meta")}, ValueError, "bias", "query's device cpu", "meta"),
    (("score", *MATRIX), {"query": torch.ones(3)}, ValueError, "query", "at least 2 dimensions", r"shape \[3\]"),
    (("score", *MATRIX), {"reference": torch.ones(3)}, ValueError, "reference", "at least 2 dim", r"shape \[3\]"),
    (("paired",), {"query": torch.ones(())}, ValueError, "query", "at least 1 dimension", r"shape \[\]"),
    (("paired",), {"reference": torch.ones(5, 3)}, ValueError, "reference", "leading dimensions", r"\[5\]"),
    (("score",), {"query": torch.ones(2, 4, 3), "reference": torch.ones(3, 5, 3)}, ValueError, "reference",
     r"leading dimensions of .* \[2\]", r"\[3\]"),
    (MATRIX, {"query": torch.ones(1, 4, 3)}, ValueError, "query", r"2 dimensions \[N, D\]", r"shape \[1, 4, 3\]"),
    (MATRIX, {"weight": torch.ones(2, 3)}, ValueError, "weight", r"one head \[D\]", r"shape \[2, 3\]"),
    (("topk",), {"k": -1}, ValueError, "k", "an integer of at least 0", "-1"),
    (("topk",), {"k": 2.0}, ValueError, "k", "an integer", r"2\.0"),
    (("topk",), {"k": True}, ValueError, "k", "an integer", "True"),
    (("topk",), {"k": 6}, ValueError, "k", "at most the 5 rows of reference", "6"),
    (("topk", "logsumexp"), {"query_labels": FOUR}, ValueError, "reference_labels", "labels, since the", "None"),
    (("topk", "logsumexp"), {"reference_labels": FIVE}, ValueError, "query_labels", "labels, since the", "None"),
    (("topk", "logsumexp"), {"among": "none"}, ValueError, "among", "one of 'different', 'same', 'all'", "'none'"),
    (("topk", "logsumexp"), {"among": "same"}, ValueError, "query_labels", "labels, for among='same'", "None"),
    (("logsumexp",), {"scale": "1"}, TypeError, "scale", "a number", "str"),
    (("logsumexp",), {"scale": torch.ones(2)}, ValueError, "scale", r"a number or shape \[\]", r"shape \[2\]"),
    (("logsumexp",), {"scale": torch.ones(()).long()}, TypeError, "scale", "torch.float32 with", "torch.int64"),
    (("rank",), {"query_cameras": FOUR}, ValueError, "reference_cameras", "cameras, since the other side", "None"),
    (("rank",), {"query_cameras": FOUR, "reference_cameras": FOUR}, ValueError, "reference_cameras", r"shape \[5\]",
     r"shape \[4\]"),
    (MATRIX, {"exclude_index": [0, 1, 2, 3]}, TypeError, "exclude_index", "an int64 tensor", "list"),
    (MATRIX, {"exclude_index": FOUR.int()}, TypeError, "exclude_index", "dtype int64", "torch.int32"),
    (MATRIX, {"exclude_index": FIVE}, ValueError, "exclude_index", r"shape \[4\]", r"shape \[5\]"),
    (MATRIX, {"exclude_index": FOUR.to_sparse()}, TypeError, "exclude_index", "a dense tensor", "torch.sparse_coo"),
    (LABELED, {"reference_labels": None}, TypeError, "reference_labels", "an int64 tensor", "NoneType"),
    (LABELED, {"query_labels": None}, TypeError, "query_labels", "an int64 tensor", "NoneType"),
    (LABELED, {"query_labels": FOUR.float()}, TypeError, "query_labels", "dtype int64", "torch.float32"),
    (LABELED, {"reference_labels": FOUR}, ValueError, "reference_labels", r"shape \[5\]", r"shape \[4\]"),
    (LABELED, {"query_labels": FOUR.to("meta")}, ValueError, "query_labels", "device cpu", "meta"),
    (("hinge",), {"balance": "rows"}, ValueError, "balance", "one of 'pairs', 'classes'", "'rows'"),
    (("hinge",), {"reduction": None}, ValueError, "reduction", "one of 'mean', 'sum', 'none'", "None"),
    (("hinge",), {"num_hard_negatives": -1}, ValueError, "num_hard_negatives", "an integer of at least 0", "-1"),
    (("hinge",), {"num_hard_negatives": 1.5}, ValueError, "num_hard_negatives", "an integer", r"1\.5"),
    (("hinge",), {"margin": "1"}, TypeError, "margin", "a number", "str"),
    (("hinge",), {"margin": torch.ones(3)}, TypeError, "margin", "a number", "Tensor"),
    (("hinge",), {"margin": 10**400}, ValueError, "margin", "a number in the range of float64", "a larger one"),
    (("logsumexp",), {"scale": 10**400}, ValueError, "scale", "a number in the range of float64", "a larger one"),
    (ALL, {"bias": -(10**400)}, ValueError, "bias", "a number in the range of float64", "a larger one"),
    (("hinge",), {"num_hard_negatives": 2**64}, ValueError, "num_hard_negatives", r"an integer below 2\*\*63", 2**64),
    (("topk",), {"k": 2**64}, ValueError, "k", r"an integer below 2\*\*63", 2**64),
    (("hinge",), {"pair_counts": 5}, TypeError, "pair_counts", "two counts", "int"),
    (("hinge",), {"pair_counts": (1, 2, 3)}, ValueError, "pair_counts", "two counts", "3"),
    (("hinge",), {"pair_counts": ("1", 2)}, TypeError, "pair_counts", "a number", "str"),
    (("hinge",), {"pair_counts": (torch.ones(3), 2)}, ValueError, "pair_counts", r".*shape \[\]", r"shape \[3\]"),
    (("hinge",), {"pair_counts": torch.tensor(3)}, ValueError, "pair_counts", "two counts", r"shape \[\]"),
    (("hinge",), {"pair_counts": (torch.tensor(1j), 2)}, TypeError, "pair_counts", "real numbers", "torch.complex64"),
    (("hinge",), {"pair_counts": (1j, 2)}, TypeError, "pair_counts", "a number", "complex"),
    (("hinge",), {"pair_counts": (float("nan"), 1)}, ValueError, "pair_counts", "numbers of at least 0", "nan"),
    (("hinge",), {"pair_counts": (1, -1)}, ValueError, "pair_counts", "numbers of at least 0", "-1"),
    (("hinge",), {"pair_counts": (10**300, 10**300)}, ValueError, "pair_counts", r"numbers below 2\*\*63",
     "a larger one"),
    (("topk",), {"largest": "no"}, TypeError, "largest", "True or False", "'no'"),
    (("topk",), {"return_stats": 1}, TypeError, "return_stats", "True or False", "1"),
    (("rank",), {"return_scores": None}, TypeError, "return_scores", "True or False", "None"),
    (("rank",), {**LISTS, "positive_indices": 5}, TypeError, "positive_indices", "an int64 tensor", "int"),
    (("rank",), {**LISTS, "positive_indices": torch.tensor(1)}, ValueError, "positive_indices", "1 dimension",
     r"shape \[\]"),
    (ALL, {"backend": ["cpu"]}, ValueError, "backend", "'auto' or one of", r"\['cpu'\]"),
    (("hinge",), {"reduction": ["mean"]}, ValueError, "reduction", "one of 'mean'", r"\['mean'\]"),
    (("logsumexp",), {"among": torch.ones(2)}, ValueError, "among", "one of 'different'", r"tensor\(\[1., 1.\]\)"),
]  # fmt: skip
ROWS = [(name, *row[1:]) for row in BAD for name in row[0]]


@pytest.mark.parametrize(
    ("name", "change", "error", "argument", "expected", "got"),
    ROWS,
    ids=[f"{name}-{'+'.join(change)}-{i}" for i, (name, change, *_) in enumerate(ROWS)],
)
def test_invalid_arguments_raise_with_expected_got_and_remedy(name, change, error, argument, expected, got):
    function, options = FUNCTIONS[name]
    with pytest.raises(error) as raised:
        function(**{**GOOD, **options, **change})
    text = str(raised.value)
    assert re.search(rf"(^|\n){argument}: expected {expected}.*, got {got}.*\. [A-Z].+\.$", text), text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_valid_arguments_are_accepted(name):
    function, options = FUNCTIONS[name]
    function(**{**GOOD, **options})
    for dtype in ACCUMULATE:
        right = {**GOOD, **options, "bias": 1}
        right |= {name: right[name].to(dtype) for name in ("query", "reference")}
        for parameters in {dtype, ACCUMULATE[dtype]}:
            function(**{**right, "weight": torch.ones(3, dtype=parameters)})


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_out_of_range_become_infinite(sign):
    """As in torch, where torch.ones(1) + 1e39 is infinite."""
    huge, infinite = sign * 1e39, torch.tensor(sign * torch.inf)
    for function, options in (FUNCTIONS["score"], FUNCTIONS["paired"], FUNCTIONS["topk"], FUNCTIONS["hinge"]):
        found, expected = (function(**{**GOOD, **options, "bias": bias}) for bias in (huge, infinite))
        torch.testing.assert_close(found, expected)
    function, options = FUNCTIONS["logsumexp"]
    found, expected = (function(**{**GOOD, **options, "scale": scale}) for scale in (huge, infinite))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_the_message_is_the_same_under_autocast():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="query: expected one of"):
        fused_dissim_score(GOOD["query"].long(), GOOD["reference"].long(), GOOD["weight"])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"query: expected a torch\.Tensor"):
        fused_dissim_score(None, GOOD["reference"], GOOD["weight"])
