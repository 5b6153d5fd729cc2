"""The quantized search: bit-identical to the plain one, from codes whose bounds hold."""

import re
import subprocess
import sys

import pytest
import torch

from dissim_kernels import QuantizedReferences, fused_dissim_topk, last_backend, quantize_references, testing
from dissim_kernels.backends import codes as plain_torch
from dissim_kernels.backends import native, quantize
from dissim_kernels.contract import ACCUMULATE, Problem
from dissim_kernels.dispatch import BACKENDS

UNBOUNDED = 1 << 29
QUANTIZED_BACKENDS = [
    name
    for name in BACKENDS
    if BACKENDS[name].unsupported_reason(Problem("quantized_topk", torch.device("cpu"))) is None
]
backends = pytest.mark.parametrize("backend", QUANTIZED_BACKENDS)
dtypes = pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)


def quantized_topk(query, reference, weight, bias=None, *, quantized=None, **options):
    """The quantized search with its statistics, with codes computed here if none are given."""
    if quantized is None:
        quantized = quantize_references(reference, weight)
    return fused_dissim_topk(query, reference, weight, bias, quantized=quantized, return_stats=True, **options)


def check(inputs, k, backend, largest=True, **filters):
    """The result is bit-identical to that of the plain search."""
    with testing.poisoned_memory():
        found = quantized_topk(*inputs, k=k, largest=largest, backend=backend, **filters)
    expected = fused_dissim_topk(*inputs, k=k, largest=largest, backend=backend, **filters)
    assert torch.equal(found.indices, expected.indices)
    assert found.scores.dtype == inputs.query.dtype
    assert torch.equal(found.scores.nan_to_num(12345), expected.scores.nan_to_num(12345))
    candidates = testing.plain_candidates(len(inputs.query), len(inputs.reference), **filters).sum(1)
    assert (found.rescored >= min(k, len(inputs.reference))).all() and (found.rescored <= candidates).all()
    return found


def clustered(queries, references, dim, classes=50, noise=0.3, seed=0, dtype=torch.float32):
    """Rows around class centers, and weights of mostly one sign, as after training."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=rng)

    def rows(count):
        row_class = torch.randint(classes, (count,), generator=rng)
        return (centers[row_class] + noise * torch.randn(count, dim, generator=rng)).to(dtype)

    weight = torch.randn(dim, generator=rng) * 0.25 - 0.5
    return testing.Inputs(rows(queries), rows(references), weight.to(dtype), 0.5)


def labels(count, classes=4, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@backends
@dtypes
@pytest.mark.parametrize("part", [0, 1, 2, 3], ids="part{}".format)
def test_edge_case_inputs(part, dtype, backend):
    """Each with every k of a few, in parts that differ in k."""
    for i, inputs in enumerate(testing.edge_case_inputs(dtype).values()):
        if inputs.query.dim() == 2 and inputs.reference.dim() == 2 and inputs.weight.dim() == 1:
            columns = len(inputs.reference)
            choices = (0, min(1, columns), columns // 2, columns)
            check(inputs, choices[(i + part) % 4], backend, largest=(i // 4 + part) % 2 == 0)


@backends
@dtypes
def test_equals_the_definition_up_to_rounding(dtype, backend):
    for weight_sign in (1, -1):
        inputs = testing.random_inputs((5, 40), (700, 40), dtype=dtype, seed=3)
        inputs = inputs._replace(weight=inputs.weight * weight_sign)
        found = quantized_topk(*inputs, k=7, backend=backend)
        testing.assert_topk_equal(*found[:2], testing.plain_score(*inputs.double()), testing.score_bound(*inputs))


@backends
def test_large_k(backend):
    inputs = clustered(2, 9000, 16)
    check(inputs, 1000, backend)
    check(inputs, 7000, backend, largest=False, exclude_index=torch.tensor([7, -1]))


@backends
@pytest.mark.parametrize("queries", [1, 4, 7, 16, 17, 300])
@pytest.mark.parametrize(("largest", "among"), [(True, "different"), (False, "different"), (False, "same")])
def test_numbers_of_queries_and_filters(queries, largest, among, backend):
    inputs = clustered(queries, 700, 48)
    filters = {"exclude_index": labels(queries, 701, seed=1) - 1, "query_labels": labels(queries),
               "reference_labels": labels(700, seed=2), "among": among}  # fmt: skip
    check(inputs, 20, backend, largest, **filters)
    del filters["exclude_index"]
    check(inputs, 400 if among == "different" else 100, backend, largest, **filters)


@backends
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("shape", [(9, 33, 1), (70, 2500, 17), (2, 129, 5), (9, 300, 99), (19, 300, 99)], ids=str)
def test_ties_everywhere(largest, shape, backend):
    """More rows reach the k-th score than a candidate list holds, so the references are scanned again."""
    inputs = testing.tied_inputs(*shape)
    check(inputs, 10, backend, largest)
    same = inputs._replace(reference=inputs.reference[:1].expand(9000, -1))
    found = check(same, 10, backend, largest)
    assert (found.rescored == 9000).all() and (found.indices == torch.arange(10)).all()


@backends
def test_outlier_queries_constant_dimensions_and_extreme_values(backend):
    inputs = clustered(30, 900, 40)
    query, reference = inputs.query.clone(), inputs.reference.clone()
    query[:10] *= 50
    reference[:, :7] = 3.25
    query[10:20, :7] = -1e4
    check(inputs._replace(query=query, reference=reference), 12, backend)
    reference[17, 5], reference[18, 8] = 1e9, -1e30
    check(inputs._replace(query=query, reference=reference), 12, backend)
    for scale in (1e30, 1e-30, 1e38, 1e-42):
        check(inputs._replace(query=inputs.query * scale, reference=inputs.reference * scale), 12, backend)
        check(inputs._replace(weight=inputs.weight * scale), 12, backend)
    for special in (torch.nan, torch.inf):
        check(inputs._replace(bias=special), 3, backend)
        check(inputs._replace(weight=inputs.weight.index_fill(0, torch.tensor([3]), special)), 3, backend)


@backends
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_sums_of_codes(sign, backend):
    """More dimensions than a partial sum holds, and most pairs with the largest difference of codes."""
    reference = torch.linspace(0, 1, 101).round(decimals=2)[:, None].expand(101, 1100)
    query = torch.tensor([[0.0], [1.0], [0.4]]).expand(3, 1100)
    inputs = testing.Inputs(query, reference, torch.full((1100,), sign), 0.0)
    for largest in (True, False):
        check(inputs, 5, backend, largest)


@backends
def test_numbers_of_dimensions_of_each_sign(backend):
    """Groups of dimensions of one sign that are full, or have one dimension less or more."""
    for dim in (7, 8, 9, 16, 23):
        inputs = testing.random_inputs((6, dim), (100, dim), seed=dim)
        for positive in (0, 1, 7, 8, dim):
            sign = torch.where(torch.arange(dim) < positive, 1.0, -1.0)
            check(inputs._replace(weight=inputs.weight.abs() * sign), 9, backend)


def by_rows(codes):
    """Codes [panels, groups, 16, 8] as a matrix [rows, dimensions]."""
    return codes.transpose(1, 2).flatten(0, 1).flatten(1).double()


@pytest.fixture(params=["compiled", "plain torch"])
def encoder(request, monkeypatch):
    """Both encoders: the CPU kernels, and the plain torch code for other devices, here on CPU tensors."""
    if request.param == "plain torch":
        monkeypatch.setattr(quantize, "_encode", plain_torch.encode)
        monkeypatch.setattr(quantize, "_extent", plain_torch.extent)


@dtypes
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_bounds_hold_for_every_pair(dtype, offset, encoder):
    """The bounds E10 and E14 in float64, for queries inside and outside the grid."""
    query, reference, weight, bias = testing.random_inputs((40, 37), (200, 37), dtype=dtype)
    query = torch.cat((query, query * 5, query[:3] * torch.inf)) + offset
    inputs = testing.Inputs(query, reference + offset, weight, bias.to(ACCUMULATE[dtype]))
    quantized = quantize_references(inputs.reference, weight)
    codes, errors, *grid, _ = quantized
    query_codes, query_errors, bases = quantize.quantize_queries(query, inputs.bias, grid)
    query_errors, errors = query_errors[: len(query)], errors[:200]
    sign = weight.double()[quantized.dim_order].sign() * (quantized.inv_scale > 0)
    sums = (by_rows(query_codes)[: len(query), None] - by_rows(codes)[:200]).abs() @ sign
    estimate = bases[:, None] + quantized.step * sums
    allowed = quantized.step * (query_errors[:, None].double() + errors)
    scores = testing.plain_score(*inputs.double())
    bounded = (query_errors < UNBOUNDED)[:, None] & (errors < UNBOUNDED)
    assert bounded[:80].all() and not bounded[80:].any()
    acc = testing.Inputs(*(x.to(ACCUMULATE[dtype]) for x in inputs))  # the search ranks by unrounded scores
    gap, allowed, rounding = (x[bounded] for x in ((scores - estimate).abs(), allowed, testing.score_bound(*acc)))
    assert (gap + rounding <= allowed).all()
    assert offset or (gap > allowed / 12).any(), "the bound is far from tight"


@dtypes
def test_codes_of_plain_torch_and_of_the_kernels_are_equal(dtype):
    """Errors may differ by 1 because sums are in another order."""
    inputs = testing.random_inputs((40, 37), (200, 37), dtype=dtype)
    reference = inputs.reference.clone()
    reference[3, 4], reference[5, 6] = torch.nan, torch.inf
    assert all(map(torch.equal, quantize._extent(reference), plain_torch.extent(reference)))
    made = quantize_references(reference, inputs.weight)
    grid = made[2:-1]
    for rows, are_queries in ((reference, False), (inputs.query * 3, True)):
        codes, errors, bases = quantize._encode(rows, grid, torch.tensor(0.0), are_queries)
        same_codes, near_errors, near_bases = plain_torch.encode(rows, grid, torch.tensor(0.0), are_queries)
        assert torch.equal(codes[: len(rows) // 16], same_codes[: len(rows) // 16])
        assert ((errors == UNBOUNDED) == (near_errors == UNBOUNDED)).all() and (errors - near_errors).abs().max() <= 1
        assert not are_queries or ((bases - near_bases).abs() <= made.step).all()
    assert (made.error_bounds == UNBOUNDED).nonzero()[:, 0].tolist() == [3, 5]


def test_weights_of_zero_have_no_codes(encoder):
    codes = quantize_references(torch.randn(20, 3), torch.zeros(3)).codes
    assert codes.shape == (2, 0, 16, 8)


@pytest.mark.parametrize("backend", [name for name in QUANTIZED_BACKENDS if name != "reference"])
def test_few_rows_of_clustered_data_are_rescored(backend):
    inputs = clustered(64, 6000, 128, classes=300)
    for largest, weight in ((True, inputs.weight), (False, -inputs.weight)):
        found = check(inputs._replace(weight=weight), 10, backend, largest)
        assert found.rescored.double().mean() < 0.01 * 6000
    mixed = testing.random_inputs((64, 128), (6000, 128))
    assert check(mixed, 10, backend).rescored.double().mean() < 0.1 * 6000


def test_codes_are_reusable_and_can_be_saved(tmp_path):
    inputs = clustered(20, 500, 33)
    torch.save(quantize_references(inputs.reference, inputs.weight), tmp_path / "codes")
    quantized = torch.load(tmp_path / "codes")
    assert type(quantized) is QuantizedReferences and quantized.rows == 500
    for largest in (True, False):
        found = quantized_topk(*inputs, k=5, quantized=quantized, largest=largest)
        fresh = quantized_topk(*inputs, k=5, largest=largest)
        assert all(torch.equal(a, b) for a, b in zip(found, fresh, strict=True))


@pytest.mark.parametrize("order", ["import torch, dissim_kernels", "import dissim_kernels, torch"])
def test_torch_load_reads_codes_after_importing_the_package(order, tmp_path):
    torch.save(quantize_references(torch.randn(20, 4), -torch.rand(4)), tmp_path / "codes")
    code = f"{order}; print(torch.load({str(tmp_path / 'codes')!r}).rows, torch.ops.dissim.score.default)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["20", "dissim.score.default"], done.stderr


@pytest.mark.parametrize("rows", [1, 2, 511, 512, 513, 5000, 2**24 + 4, 2**32 - 1])
def test_sampled_rows_are_valid_indices(rows):
    """Also for more than 2**24 rows, which float32 cannot count."""
    sample = quantize.sample_rows(torch.empty(1, 1).expand(rows, 1))
    assert sample[0] == 0 and sample[-1] == rows - 1
    assert len(sample) == min(512, rows) and (len(sample) == 1 or (sample.diff() > 0).all())


def test_same_result_with_any_number_of_threads():
    mixed = testing.random_inputs((50, 64), (6000, 64))
    tied = testing.tied_inputs(50, 6000, 9)
    threads = torch.get_num_threads()
    try:
        for inputs in (mixed, tied):
            found = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                found.append(quantized_topk(*inputs, k=20))
            assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_codes_of_other_references_or_weights_raise():
    query, reference, weight, bias = testing.random_inputs((3, 5), (40, 5))
    made = quantize_references(reference, weight)
    for other, message in (
        ({"weight": weight * 2}, "quantized: expected codes made for these weights"),
        ({"reference": reference[:20]}, "quantized: expected codes of 20 references, got codes of 40"),
        ({"reference": torch.cat((reference, reference[:3]))}, "quantized: expected codes of 43 references"),
        ({"query": query.double(), "reference": reference.double(), "weight": weight.double(), "bias": 0.0},
         r"quantized.weight: expected torch.float64 \[5\], got torch.float32 \[5\]"),
    ):  # fmt: skip
        arguments = {"query": query, "reference": reference, "weight": weight, "bias": bias, **other}
        with pytest.raises(ValueError, match=message):
            quantized_topk(**arguments, k=2, quantized=made)
    with pytest.raises(TypeError, match="quantized: expected a QuantizedReferences, got tuple"):
        quantized_topk(query, reference, weight, k=2, quantized=tuple(made))
    weight.neg_()  # as an optimizer does
    with pytest.raises(ValueError, match="quantized: expected codes made for these weights"):
        quantized_topk(query, reference, weight, k=2, quantized=made)


@pytest.mark.parametrize("made_for", [0.0, torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max])
@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -torch.inf])
def test_codes_of_finite_weights_do_not_serve_others(made_for, weight):
    query, reference, *_ = testing.random_inputs((3, 3), (40, 3))
    made = quantize_references(reference, torch.tensor([-1, -2, made_for]))
    with pytest.raises(ValueError, match="quantized: expected codes made for these weights"):
        quantized_topk(query, reference, torch.tensor([-1, -2, weight]), k=2, quantized=made)


#: A field of the codes of 40 references of 5 dimensions, its change, and the error.
DAMAGES = [
    ("codes", torch.Tensor.short, "expected torch.uint8 [3, 2, 16, 8], got torch.int16"),
    ("codes", lambda x: x.mT.contiguous().mT, "expected a contiguous tensor, got strides"),
    ("codes", lambda x: x[:, :1].clone(), "dim_order: expected torch.int64 [8], got torch.int64 [16]"),
    ("codes", lambda x: x[:-1].clone(), "expected torch.uint8 [3, 2, 16, 8], got torch.uint8 [2, 2, 16, 8]"),
    ("codes", lambda x: x.flatten(), "expected torch.uint8 [3, 0, 16, 8], got"),
    ("codes", lambda x: x.numpy(), "expected a dense torch.Tensor, got ndarray"),
    ("error_bounds", torch.Tensor.long, "expected torch.int32 [48], got torch.int64 [48]"),
    ("error_bounds", lambda x: x[:40], "expected torch.int32 [48], got torch.int32 [40]"),
    ("dim_order", torch.Tensor.int, "expected torch.int64 [16], got torch.int32"),
    ("offset", torch.Tensor.half, "expected torch.float32 [16], got torch.float16"),
    ("inv_scale", lambda x: x[::2].repeat_interleave(2)[::2], "expected torch.float32 [16], got torch.float32 [8]"),
    ("max_code", lambda x: x[:1].expand(16), "expected a contiguous tensor, got strides (0,)"),
    ("weight", lambda x: x.to("meta"), "expected reference's device cpu, got meta"),
    ("step", lambda x: x[None], "expected torch.float64 [], got torch.float64 [1]"),
    ("step", torch.Tensor.float, "expected torch.float64 [], got torch.float32 []"),
]


@pytest.mark.parametrize(
    ("field", "change", "message"), DAMAGES, ids=[f"{i}-{row[0]}" for i, row in enumerate(DAMAGES)]
)
def test_damaged_codes_raise(field, change, message):
    query, reference, weight, _ = testing.random_inputs((3, 5), (40, 5))
    made = quantize_references(reference, weight)
    assert made.codes.shape == (3, 2, 16, 8)
    damaged = made._replace(**{field: change(getattr(made, field))})
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
        quantized_topk(query, reference, weight, k=2, quantized=damaged)
    assert str(error.value).startswith("quantized.")


@pytest.mark.parametrize("wrong", [10**9, 5, -1, -(2**63)])
def test_codes_with_invalid_dim_order_raise(wrong):
    query, reference, weight, _ = testing.random_inputs((3, 5), (40, 5))
    made = quantize_references(reference, weight)
    damaged = made._replace(dim_order=made.dim_order.index_fill(0, torch.tensor(3), wrong))
    with pytest.raises(RuntimeError, match=f"^dim_order: expected an integer from 0 to 4, got {wrong}"):
        quantized_topk(query, reference, weight, k=2, quantized=damaged)


def test_codes_of_too_few_groups_raise():
    query, reference, weight, _ = testing.random_inputs((3, 20), (40, 20))
    made = quantize_references(reference, weight)
    shorter = {name: getattr(made, name)[:8] for name in ("dim_order", "offset", "inv_scale", "max_code")}
    with pytest.raises(
        ValueError, match=r"quantized.dim_order: expected 8 for each 8 weights of a sign, rounded up, got 8"
    ):
        quantized_topk(query, reference, weight, k=2,
                              quantized=made._replace(codes=made.codes[:, :1].clone(), **shorter))  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "error"),
    [(torch.ones(5, 4).long(), TypeError), (torch.ones(2, 5, 4), ValueError), (torch.ones(4), ValueError),
     (torch.ones(5, 4).numpy(), TypeError), (torch.ones(5, 4).to_sparse(), TypeError)],
    ids=["integers", "three dimensions", "one dimension", "array", "sparse"],
)  # fmt: skip
def test_invalid_references_raise_when_quantizing(reference, error):
    with pytest.raises(error, match=r"^reference: expected .+, got .+\. [A-Z].+\.$") as raised:
        quantize_references(reference, -torch.ones(4))
    assert "query" not in str(raised.value)
    for weight in (torch.ones(3), torch.ones(1, 4), torch.ones(4).long(), torch.ones(4, device="meta")):
        with pytest.raises((TypeError, ValueError), match=r"^weight: expected") as raised:
            quantize_references(torch.ones(5, 4), weight)
        assert "query" not in str(raised.value)


def test_too_few_candidates_and_a_missing_library_raise(monkeypatch):
    inputs = testing.random_inputs((3, 5), (4, 5))
    with pytest.raises(ValueError, match="k: expected at most the 3 candidates of query row 1, got 4"):
        quantized_topk(*inputs, k=4, exclude_index=torch.tensor([-1, 2, -1]))
    made = quantize_references(inputs.reference, inputs.weight)
    meta = [t.to("meta") if isinstance(t, torch.Tensor) else t for t in inputs]
    with pytest.raises(ValueError, match=r"quantized.weight: expected reference's device meta, got cpu"):
        quantized_topk(*meta, k=1, quantized=made)
    monkeypatch.setattr(native, "NOT_LOADED", "the compiled library is broken for this test")
    with pytest.raises(RuntimeError, match="the compiled library is broken for this test"):
        quantized_topk(*inputs, k=1)


@pytest.mark.parametrize("backend", [name for name in testing.runnable_backends() if name not in QUANTIZED_BACKENDS])
def test_backend_without_quantized_scan_warns_and_scores_every_reference(backend):
    inputs = testing.random_inputs((3, 5), (9, 5))
    with pytest.warns(UserWarning, match=f"backend '{backend}' does not use quantized: it has no scan over codes"):
        found = quantized_topk(*inputs, k=2, backend=backend)
    expected = fused_dissim_topk(*inputs, k=2, return_stats=True, backend=backend)
    assert all(map(torch.equal, found, expected))
    assert found.rescored.tolist() == [9, 9, 9] and last_backend() == backend


def test_derivatives_and_vmap_raise():
    query, reference, weight, _ = testing.random_inputs((3, 5), (9, 5))
    leaf = query.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="no derivative"):
        quantized_topk(leaf, reference, weight, k=2).scores.sum().backward()
    with pytest.raises(NotImplementedError, match="no derivative"):
        torch.func.jvp(lambda q: quantized_topk(q, reference, weight, k=2).scores, (query,), (query,))
    made = quantize_references(reference, weight)
    with pytest.raises(NotImplementedError, match="vmap is not implemented"):
        torch.func.vmap(lambda q: quantized_topk(q, reference, weight, k=2, quantized=made))(query[None])


def test_compile_and_opcheck():
    inputs = testing.random_inputs((3, 5), (9, 5))
    made = quantize_references(inputs.reference, inputs.weight)

    def search(*inputs):
        return quantized_topk(*inputs, k=2, quantized=made)

    assert torch.equal(
        torch.compile(search, backend="eager", fullgraph=True)(*inputs).indices, search(*inputs).indices
    )
    *codes, rows = made
    arguments = (*inputs[:3], inputs.bias[None], 2, True, None, None, None, "all", codes, rows, "cpu")
    torch.library.opcheck(torch.ops.dissim.quantized_topk.default, arguments)
