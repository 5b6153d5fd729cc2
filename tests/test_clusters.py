"""The search of clusters: bit-identical to the plain one, with bounds that hold, and without most rows."""

import re

import pytest
import torch

from dissim_kernels import (
    ClusteredReferences,
    cluster_references,
    fused_dissim_topk,
    last_backend,
    quantize_references,
    testing,
)
from dissim_kernels.backends import native
from dissim_kernels.contract import ACCUMULATE

dtypes = pytest.mark.parametrize("dtype", ACCUMULATE, ids=str)


def check(inputs, k, largest=True, clusters=None, **filters):
    """The result is bit-identical to that of the plain search."""
    clusters = clusters or cluster_references(inputs.reference, inputs.weight)
    with testing.poisoned_memory():
        found = fused_dissim_topk(*inputs, k=k, largest=largest, clusters=clusters, return_stats=True, **filters)
    expected = fused_dissim_topk(*inputs, k=k, largest=largest, **filters)
    assert torch.equal(found.indices, expected.indices)
    assert found.scores.dtype == inputs.query.dtype
    assert torch.equal(found.scores.nan_to_num(12345), expected.scores.nan_to_num(12345))
    rows = len(inputs.reference)
    assert (found.rescored >= min(k, rows)).all() and (found.rescored <= rows).all()
    return found


def clustered(queries=20, references=3000, dim=40, classes=60, noise=0.1, dtype=torch.float32, seed=0, spread=0.25):
    """Rows around class centers, and weights of both signs that are mostly negative, as after training."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=rng)

    def rows(count):
        row_class = torch.randint(classes, (count,), generator=rng)
        return (centers[row_class] + noise * torch.randn(count, dim, generator=rng)).to(dtype)

    weight = torch.randn(dim, generator=rng) * spread - 0.5
    return testing.Inputs(rows(queries), rows(references), weight.to(dtype), 0.5)


def labels(count, classes=4, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@dtypes
def test_edge_case_inputs(dtype):
    for i, inputs in enumerate(testing.edge_case_inputs(dtype).values()):
        if inputs.query.dim() == 2 and inputs.reference.dim() == 2 and inputs.weight.dim() == 1:
            columns = len(inputs.reference)
            for j, k in enumerate(sorted({0, min(1, columns), columns})):
                check(inputs, k, largest=(i + j) % 2 == 0)


@dtypes
@pytest.mark.parametrize("queries", [1, 8, 9, 17, 130])
def test_few_rows_of_clustered_data_are_scored(queries, dtype):
    """Above and below the number of queries from which a score has another order of sums."""
    inputs = clustered(queries, dtype=dtype)
    for largest, weight in ((True, inputs.weight), (False, -inputs.weight)):
        found = check(inputs._replace(weight=weight), 10, largest)
        assert found.rescored.double().mean() < 0.1 * 3000
    longer = clustered(queries, 1500, 140, dtype=dtype)  # the max form
    assert check(longer, 3).rescored.double().mean() < 0.2 * 1500


def test_nothing_is_excluded_where_all_rows_are_about_equally_near():
    found = check(testing.random_inputs((30, 64), (3000, 64)), 5)
    assert (found.rescored == 3000).all()


@pytest.mark.parametrize("queries", [3, 40])
@pytest.mark.parametrize(("largest", "among"), [(True, "different"), (False, "different"), (True, "same")])
def test_filters(queries, largest, among):
    inputs = clustered(queries)
    if not largest:
        inputs = inputs._replace(weight=-inputs.weight)
    filters = {"exclude_index": labels(queries, 3001, seed=1) - 1, "query_labels": labels(queries),
               "reference_labels": labels(3000, seed=2), "among": among}  # fmt: skip
    assert check(inputs, 2, largest, **filters).rescored.double().mean() < 0.3 * 3000
    del filters["exclude_index"]
    check(inputs, 20, largest, **filters)


@pytest.mark.parametrize("largest", [True, False])
def test_ties_everywhere(largest):
    """Sums of small integers tie; of equal rows the first ones count."""
    inputs = testing.tied_inputs(12, 2500, 9)
    check(inputs, 7, largest)
    repeated = inputs._replace(reference=inputs.reference[:20].repeat(125, 1))
    check(repeated, 7, largest)
    same = inputs._replace(reference=inputs.reference[:1].expand(2500, -1))
    assert (check(same, 7, largest).indices == torch.arange(7)).all()


@pytest.mark.parametrize("queries", [4, 30])
def test_rows_weights_and_biases_without_a_bound(queries):
    inputs = clustered(queries)
    query, reference = inputs.query.clone(), inputs.reference.clone()
    query[0, 3], query[1, 4], query[2] = torch.nan, -torch.inf, 1e38
    reference[17, 5], reference[18, 8], reference[19, 9], reference[20] = torch.nan, torch.inf, -torch.inf, 3e37
    for largest in (True, False):
        found = check(inputs._replace(query=query, reference=reference), 6, largest)
        # Most of 4 queries have no bound, so their search is plain.
        assert not largest or queries == 4 or found.rescored[3:].double().mean() < 0.3 * 3000
    for special in (torch.nan, torch.inf, 3e38):
        check(inputs._replace(bias=special), 3)
        check(inputs._replace(weight=inputs.weight.index_fill(0, torch.tensor([3]), special)), 3)
    check(inputs._replace(reference=torch.full_like(reference, torch.nan)), 3)


@pytest.mark.parametrize("change", [
    lambda x: x + 1000, lambda x: x * 1e-30, lambda x: x * 1e-42, lambda x: x * 1e30, lambda x: x * 1e38,
], ids=["offset", "small", "subnormal", "large", "overflow"])  # fmt: skip
def test_ranges_of_values(change):
    inputs = clustered()
    moved = inputs._replace(query=change(inputs.query), reference=change(inputs.reference), bias=0.0)
    found = check(moved, 5)
    if 1e-37 < moved.query.abs().max() < 1e37:  # otherwise underflow or overflow hides the bounds
        assert found.rescored.double().mean() < 0.2 * 3000
    check(inputs._replace(weight=change(inputs.weight)), 5)


def test_strides_sizes_and_numbers_of_clusters():
    inputs = clustered(11, 1300, 30)
    query, reference = inputs.query.repeat(1, 2)[:, ::2], inputs.reference.mT.contiguous().mT
    strided = testing.Inputs(query, reference, inputs.weight.repeat(2)[::2], 0.0)
    for count in (1, 7, 1300, 5000):
        clusters = cluster_references(reference, strided.weight, num_clusters=count)
        assert len(clusters.pivots) <= min(count, 1300)
        check(strided, 10, clusters=clusters)
    check(strided, 1300)
    check(inputs._replace(query=inputs.query[:0]), 3)
    check(inputs._replace(query=inputs.query[:, :0], reference=inputs.reference[:, :0], weight=inputs.weight[:0]), 3)
    check(inputs._replace(reference=inputs.reference[:0]), 0)


def test_same_result_with_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        for inputs in (clustered(70, noise=0.4), testing.tied_inputs(50, 3000, 9)):
            clusters = cluster_references(inputs.reference, inputs.weight)
            found = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                found.append(fused_dissim_topk(*inputs, k=10, clusters=clusters, return_stats=True))
            assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


def kernel_scores(inputs):
    """Scores as the search computes them, in the accumulator dtype."""
    found = fused_dissim_topk(*(x.to(ACCUMULATE[x.dtype]) for x in inputs[:3]), inputs.bias, k=len(inputs.reference))
    return torch.empty_like(found.scores).scatter_(1, found.indices, found.scores).double()


def query_slack(inputs, made):
    """The slack of each query, which the kernel computes."""
    query, reference, _, bias = inputs
    results = made.weight.new_empty(len(query), 1), labels(len(query))[:, None]
    slack, scored = torch.empty(len(query), dtype=torch.float64), labels(len(query))
    native.operators.clustered_topk(
        query[None], reference[None], made.weight, torch.tensor([bias], dtype=made.weight.dtype), 1, True, None, None,
        None, False, made.pivots[None], *made[1:5], *results, slack, scored,
    )  # fmt: skip
    return slack


def bound_terms(inputs):
    """The clusters, the cluster and radius of each row, the slack of each query, and the difference of each row's
    score from its pivot's, as the kernels round them."""
    made = cluster_references(inputs.reference, inputs.weight)
    cluster, radii = (torch.empty(made.rows, dtype=x.dtype) for x in (made.order, made.radii))
    cluster[made.order] = torch.repeat_interleave(torch.arange(len(made.pivots)), made.offsets.diff())
    radii[made.order] = made.radii
    slack = query_slack(inputs, made)
    gap = kernel_scores(inputs) - kernel_scores(inputs._replace(reference=made.pivots))[:, cluster]
    return made, cluster, radii, slack, gap.abs()


@dtypes
@pytest.mark.parametrize("offset", [0, 100])
def test_bounds_hold_for_rounded_scores(dtype, offset):
    inputs = clustered(20, 600, 50, classes=20, dtype=dtype)
    query, reference = inputs.query + offset, inputs.reference + offset
    for some in (inputs._replace(query=query, reference=reference), inputs._replace(query=20 * query)):
        made, _, radii, slack, gap = bound_terms(some)
        assert radii.isfinite().all() and slack.isfinite().all()
        assert (gap <= radii + slack[:, None]).all()
        assert (gap > radii / 4).any(), "the bound is far from tight"
        assert all((radii[made.order[a:b]].diff() <= 0).all() for a, b in made.offsets.unfold(0, 2, 1).tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds_without_rounding_would_not_hold(dtype):
    """Queries beyond all rows in every dimension: the terms of a gap have one sign, so it is the radius itself."""
    inputs = clustered(20, 600, 50, classes=20, dtype=dtype, noise=1e-3)
    rows = inputs.reference[:1] + 1e-3 * torch.arange(600)[:, None] * inputs.weight.sign()
    inputs = inputs._replace(query=10 + inputs.query, reference=rows)
    made, cluster, radii, slack, gap = bound_terms(inputs)
    assert (gap <= radii + slack[:, None]).all()
    exact = ((rows.double() - made.pivots.double()[cluster]).abs() * inputs.weight.double().abs()).sum(1)
    assert (exact < radii).all() and (gap > exact).any()


def test_clusters_are_reusable_reproducible_and_can_be_saved(tmp_path):
    inputs = clustered()
    made = cluster_references(inputs.reference, inputs.weight, seed=3)
    again = cluster_references(inputs.reference, inputs.weight, seed=3)
    assert all(map(torch.equal, made[:-1], again[:-1]))
    assert made.order.sort().values.equal(torch.arange(3000)) and made.rows == 3000
    torch.save(made, tmp_path / "clusters")
    loaded = torch.load(tmp_path / "clusters")
    assert type(loaded) is ClusteredReferences and loaded.rows == 3000
    for largest in (True, False):
        check(inputs, 5, largest, clusters=loaded)


def test_no_two_classes_share_a_pivot():
    """With twice as many pivots as classes. A pivot between two classes would have a large radius."""
    rng, row_class = torch.Generator().manual_seed(0), torch.arange(4000) % 126
    reference = torch.randn(126, 40, generator=rng)[row_class] + 0.3 * torch.randn(4000, 40, generator=rng)
    made = cluster_references(reference, -torch.ones(40))
    assert len(made.pivots) == 253
    for cluster in made.order.tensor_split(made.offsets[1:-1]):
        assert len(row_class[cluster].unique()) <= 1


def test_clusters_of_other_references_or_weights_raise():
    query, reference, weight, bias = clustered(3, 500, 5)
    made = cluster_references(reference, weight)
    for other, message in (
        ({"weight": weight * 2}, "clusters: expected clusters made for these weights"),
        ({"reference": reference[:20]}, "clusters: expected clusters of 20 references, got clusters of 500"),
        ({"query": query.double(), "reference": reference.double(), "weight": weight.double()},
         r"clusters.pivots: expected torch.float64 \[89, 5\], got torch.float32 \[89, 5\]"),
        ({"quantized": quantize_references(reference, weight)}, "clusters: expected None, since quantized is given"),
    ):  # fmt: skip
        arguments = {"query": query, "reference": reference, "weight": weight, "bias": bias, **other}
        with pytest.raises(ValueError, match=message):
            fused_dissim_topk(**arguments, k=2, clusters=made)
    with pytest.raises(TypeError, match="clusters: expected a ClusteredReferences, got tuple"):
        fused_dissim_topk(query, reference, weight, k=2, clusters=tuple(made))
    weight.neg_()  # as an optimizer does
    with pytest.raises(ValueError, match="clusters: expected clusters made for these weights"):
        fused_dissim_topk(query, reference, weight, k=2, clusters=made)


@pytest.mark.parametrize("made_for", [0.0, torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max])
@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -torch.inf])
def test_clusters_of_finite_weights_do_not_serve_others(made_for, weight):
    query, reference, *_ = testing.random_inputs((3, 3), (40, 3))
    made = cluster_references(reference, torch.tensor([-1, -2, made_for]))
    with pytest.raises(ValueError, match="clusters: expected clusters made for these weights"):
        fused_dissim_topk(query, reference, torch.tensor([-1, -2, weight]), k=2, clusters=made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clusters_of_half_precision_under_autocast(dtype):
    """A search under autocast runs in float32, with clusters made inside or outside of it."""
    inputs = clustered(4, 800, 6, dtype=dtype)
    outside = cluster_references(inputs.reference, inputs.weight)
    with torch.autocast("cpu", torch.bfloat16):
        expected = fused_dissim_topk(*inputs, k=3)
        for made in (outside, cluster_references(inputs.reference, inputs.weight)):
            found = fused_dissim_topk(*inputs, k=3, clusters=made)
            assert found.scores.dtype == torch.float32 and all(map(torch.equal, found, expected))


NOT_OF_THESE = ": expected the clusters of these references, got others or damaged ones"
#: A field of the clusters of 500 references of 5 dimensions, its change, and the error.
DAMAGES = [
    ("pivots", torch.Tensor.double, ".pivots: expected torch.float32 [89, 5], got torch.float64"),
    ("pivots", lambda x: x[:, :4], ".pivots: expected torch.float32 [89, 5], got torch.float32 [89, 4]"),
    ("pivots", lambda x: x[:-1], ".offsets: expected torch.int64 [89], got torch.int64 [90]"),
    ("pivots", lambda x: x.numpy(), ".pivots: expected a dense torch.Tensor, got ndarray"),
    ("order", torch.Tensor.int, ".order: expected torch.int64 [500], got torch.int32"),
    ("order", lambda x: x[:-1], ".order: expected torch.int64 [500], got torch.int64 [499]"),
    ("order", lambda x: x + 10**9, NOT_OF_THESE),
    ("order", lambda x: x - 500, NOT_OF_THESE),
    ("order", lambda x: x.flip(0), NOT_OF_THESE),
    ("offsets", lambda x: x + 1, ".offsets: expected numbers that ascend from 0 to 500, got others"),
    ("offsets", lambda x: x.flip(0), ".offsets: expected numbers that ascend from 0 to 500, got others"),
    ("offsets", lambda x: x[:0], ".offsets: expected torch.int64 [90], got torch.int64 [0]"),
    ("pivots", lambda x: x + 1, NOT_OF_THESE),
    ("pivots", lambda x: torch.full_like(x, torch.nan), NOT_OF_THESE),
    ("pivots", lambda x: torch.full_like(x, 1e30), NOT_OF_THESE),
    ("radii", lambda x: x / 4, NOT_OF_THESE),
    ("radii", lambda x: torch.full_like(x, -1e30), NOT_OF_THESE),
    ("radii", lambda x: torch.full_like(x, torch.nan), NOT_OF_THESE),
    ("radii", torch.Tensor.float, ".radii: expected torch.float64 [500], got torch.float32"),
    ("radii", lambda x: x[:1].expand(500), ".radii: expected a contiguous tensor, got strides (0,)"),
    ("center", lambda x: x[:1], ".center: expected torch.float32 [5], got torch.float32 [1]"),
    ("weight", lambda x: x.to("meta"), ".weight: expected reference's device cpu, got meta"),
]


@pytest.mark.parametrize(("field", "change", "message"), DAMAGES, ids=[f"{i}-{x[0]}" for i, x in enumerate(DAMAGES)])
def test_damaged_clusters_raise(field, change, message):
    query, reference, weight, _ = clustered(3, 500, 5)
    made = cluster_references(reference, weight)
    damaged = made._replace(**{field: change(getattr(made, field))})
    with pytest.raises((ValueError, TypeError), match=re.escape("clusters" + message)):
        fused_dissim_topk(query, reference, weight, k=2, clusters=damaged)


@dtypes
@pytest.mark.parametrize("queries", [1, 30])
def test_references_that_changed_raise(queries, dtype):
    """The clusters are of the same numbers of rows and columns, so only scores show that they do not belong."""
    inputs = clustered(queries, 3000, dtype=dtype)
    made = cluster_references(inputs.reference, inputs.weight)
    shuffled = inputs.reference[torch.randperm(3000, generator=torch.Generator().manual_seed(0))]
    for other in (shuffled, inputs.reference + 1, torch.full_like(inputs.reference, torch.nan)):
        with pytest.raises(ValueError, match=re.escape("clusters" + NOT_OF_THESE)):
            fused_dissim_topk(inputs.query, other, inputs.weight, k=3, clusters=made)


def test_invalid_arguments_raise_when_clustering():
    rows, weight = torch.ones(5, 4), torch.ones(4)
    for arguments, options, message in (
        ((rows.long(), weight), {}, "reference: expected"),
        ((rows[None], weight), {}, "reference: expected 2 dimensions"),
        ((rows, weight[:3]), {}, "weight: expected shape"),
        ((rows, weight), {"num_clusters": 0}, "num_clusters: expected an integer of at least 1, got 0"),
        ((rows, weight), {"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ((rows, weight), {"seed": 2**64}, "seed: expected an integer below 2**63, got 18446744073709551616"),
        (
            (torch.empty(1, 1).expand(1, 2**19), torch.ones(2**19)),
            {},
            "reference: expected fewer than 524288 columns",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
            cluster_references(*arguments, **options)


def test_too_few_candidates_raise():
    inputs = clustered(3, 500, 5)
    made = cluster_references(inputs.reference, inputs.weight)
    filters = {"query_labels": torch.zeros(3).long(), "reference_labels": (torch.arange(500) > 1).long()}
    with pytest.raises(ValueError, match="k: expected at most the 2 candidates of query row 0, got 3"):
        fused_dissim_topk(*inputs, k=3, clusters=made, among="same", **filters)


@pytest.mark.parametrize("name", [name for name in testing.runnable_backends() if name != "cpu"])
def test_backend_without_a_search_of_clusters_warns_and_scores_every_reference(name):
    inputs = testing.random_inputs((3, 5), (9, 5))
    made = cluster_references(inputs.reference, inputs.weight)
    with pytest.warns(UserWarning, match=f"backend '{name}' does not use clusters: it has no search of clusters"):
        found = fused_dissim_topk(*inputs, k=2, clusters=made, return_stats=True, backend=name)
    expected = fused_dissim_topk(*inputs, k=2, return_stats=True, backend=name)
    assert all(map(torch.equal, found, expected)) and last_backend() == name


def test_derivatives_and_vmap_raise():
    query, reference, weight, _ = testing.random_inputs((3, 5), (9, 5))
    made = cluster_references(reference, weight)
    leaf = query.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="no derivative"):
        fused_dissim_topk(leaf, reference, weight, k=2, clusters=made).scores.sum().backward()
    with pytest.raises(NotImplementedError, match="vmap is not implemented with clusters"):
        torch.func.vmap(lambda q: fused_dissim_topk(q, reference, weight, k=2, clusters=made))(query[None])


def test_compile_and_opcheck():
    inputs = testing.random_inputs((3, 5), (9, 5))
    made = cluster_references(inputs.reference, inputs.weight)

    def search(*inputs):
        return fused_dissim_topk(*inputs, k=2, clusters=made)

    assert torch.equal(
        torch.compile(search, backend="eager", fullgraph=True)(*inputs).indices, search(*inputs).indices
    )
    *tensors, rows = made
    arguments = (*inputs[:3], inputs.bias[None], 2, True, None, None, None, "all", tensors, rows, "cpu")
    torch.library.opcheck(torch.ops.dissim.clustered_topk.default, arguments)


@dtypes
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_references_search_among_themselves(offset, dtype):
    """Each row is a query that excludes itself; row 5 equals row 7."""
    inputs = clustered(queries=0)
    rows = inputs.reference.add(offset).to(dtype)
    rows[5] = rows[7]
    among_rows = inputs._replace(query=rows, reference=rows, weight=inputs.weight.to(dtype))
    found = check(among_rows, 8, exclude_index=torch.arange(len(rows)))
    assert found.rescored.double().mean() < len(rows) / 4
