"""Whether a call is right: an invalid argument or, if all are valid, the results of the backend "reference"."""

from __future__ import annotations

import torch
from draw import Draw, shrunk
from forms import ACC, DTYPES, INTEGERS, up

from dissim_kernels import testing
from dissim_kernels.backends import codes as plain_torch
from dissim_kernels.backends import reference as plain
from dissim_kernels.contract import (
    AMONG,
    HingeArguments,
    HingeBackwardArguments,
    LogSumExpArguments,
    LogSumExpBackwardArguments,
    RankArguments,
    TopKArguments,
)

#: The arguments of a backend's function, where they are a tuple.
ARGUMENTS = {"topk": TopKArguments, "hinge": HingeArguments, "hinge_backward": HingeBackwardArguments,
             "logsumexp": LogSumExpArguments, "logsumexp_backward": LogSumExpBackwardArguments,
             "rank": RankArguments}  # fmt: skip
NUMBERS = {"k": int, "rows": int, "count": int, "hard": int, "groups": int, "float": int | float, "bool": int,
           "backend": str, "flags": list, "flags3": list, "among": str}  # fmt: skip


def invalid_argument(draw: Draw) -> str | None:
    """The name of an invalid argument, or None."""
    sizes: dict[str, int] = {}
    tensors = [(f, a) for f, a in zip(draw.forms, draw.arguments, strict=True) if f.sizes is not None]
    for form, value in zip(draw.forms, draw.arguments, strict=True):
        if value is None and "?" not in form:
            return form.name
        if value is not None and not isinstance(value, NUMBERS.get(form.kind, torch.Tensor)):
            return form.name
    tensors = [(f, a) for f, a in tensors if a is not None]
    element = next(a.dtype for f, a in tensors if f.name in ("query", "rows"))
    if element not in DTYPES:
        return "query"
    for form, value in tensors:
        allowed = {"E": (element,), "A": (ACC[element],), "P": (element, ACC[element])}.get(form.kind)
        if value.dtype not in (allowed or (INTEGERS.get(form.kind),)):
            return form.name
        if value.device.type != "cpu" or value.layout != torch.strided or value.dim() != len(form.sizes):
            return form.name
        if ("c" in form or "o" in form) and not value.is_contiguous():
            return form.name
        for symbol, size in zip(form.sizes, value.shape, strict=True):
            if symbol.isalpha() and sizes.setdefault(symbol, size) != size:
                return form.name
    for form, value in tensors:
        if "G" in "".join(form.sizes):
            sizes.setdefault("G", value.shape[form.sizes.index("G")] if "G" in form.sizes else len(value) // 8)
        if form.sizes_for(sizes) != list(value.shape):
            return form.name
    return wrong_memory(tensors) or wrong_number(draw, sizes)


def wrong_number(draw: Draw, sizes: dict[str, int]) -> str | None:
    given = dict(zip((form.name for form in draw.forms), draw.arguments, strict=True))
    if "query_labels" in given and (given["query_labels"] is None) != (given["reference_labels"] is None):
        return "query_labels"
    for form, value in zip(draw.forms, draw.arguments, strict=True):
        if value is None:
            continue
        if form.kind == "k" and not (0 <= value <= sizes["M"] and sizes.get("K", value) == value):
            return "k"
        if form.kind in ("count", "hard") and value < -(form.kind == "hard"):
            return form.name
        if form.kind == "backend" and value not in ("cpu", "reference", "auto"):
            return "backend"
        if form.kind in ("flags", "flags3") and len(value) != (3 if form.kind == "flags3" else 4):
            return form.name
        if form.kind == "among":
            needs_labels = ("different", "same") if "logsumexp" in draw.operator else ("same",)
            if value not in AMONG or (value in needs_labels and given["query_labels"] is None):
                return form.name
        if form.kind == "offsets":
            ends = value[0].item(), value[-1].item()
            if ends != (0, sizes["P"]) or (value.diff() < 0).any():
                return form.name
        if form.kind == "starts" and ((value[0], value[-1]) != (0, sizes["M"]) or (value.diff() < 0).any()):
            return form.name
        if form.kind == "indices" and len(value) and not 0 <= value.min() <= value.max() < sizes["M"]:
            return form.name
        if form.kind == "rows" and value != sizes["M"]:
            return "rows"
        if form.kind in ("groups", "positive") and not 0 <= int(value) <= sizes["G"]:
            return form.name
        looked_at = given.get("backend") != "reference" and (value.numel() if form.kind == "dim_order" else 0)
        if looked_at and not 0 <= value.min() <= value.max() < sizes["D"]:
            return form.name
    if draw.operator.endswith(("hinge_backward", "logsumexp_backward")) and sizes["M"] % 8:
        spare = given["active"][:, -1].int() >> sizes["M"] % 8
        not_run = draw.operator == "dissim::hinge_backward" and not sizes["D"]
        by_reference = given.get("backend") == "reference" or not_run
        if spare.any() and not by_reference:
            return "active"
    if draw.operator == "dissim_native::quantized_topk" and sizes["G"] > up(sizes["D"], 8) + 1:
        return "codes"
    if draw.operator == "dissim::quantized_topk":
        weight = given["weight"].to(given["quantized_weight"].dtype)
        groups = up(int((weight > 0).sum()), 8) + up(int((weight < 0).sum()), 8)
        if not torch.equal(weight, given["quantized_weight"]) or groups != sizes["G"]:
            return "quantized_weight"
    if draw.operator == "dissim::clustered_topk":
        made_for = given["clusters_weight"]
        if not torch.equal(given["weight"].to(made_for.dtype).nan_to_num(), made_for.nan_to_num()):
            return "clusters_weight"
    if draw.operator in ("dissim::topk", "dissim::quantized_topk", "dissim::clustered_topk"):
        filters = {name: given[name] for name in ("exclude_index", "query_labels", "reference_labels", "among")}
        if given["k"] and (testing.plain_candidates(sizes["N"], sizes["M"], **filters).sum(1) < given["k"]).any():
            return "k"
    return None


def may_raise(draw: Draw) -> bool:
    """Whether a call may raise, though it need not: a search notices most clusters of other references."""
    return not draw.clusters_fit


def wrong_memory(tensors: list) -> str | None:
    spans = []
    for form, value in tensors:
        if not value.numel():
            continue
        if shrunk(value):
            return form.name
        last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        begin = value.untyped_storage().data_ptr() + value.storage_offset() * value.element_size()
        end = begin + (last + 1) * value.element_size()
        for other, first, behind in spans:
            if ("o" in form or "o" in other) and begin < behind and first < end:
                return form.name
        spans.append((form, begin, end))
    return None


def expected(draw: Draw) -> list | None:
    """The results of the backend "reference", in the order of the outputs. None if they cannot be compared."""
    given = dict(zip((form.name for form in draw.forms), draw.arguments, strict=True))
    name = draw.operator.split("::")[1].removeprefix("clustered_")
    uncompared = ("dissim_native::quantize", "dissim_native::quantized_topk", "dissim::score_jvp")
    if not draw.comparable or draw.operator in uncompared:
        return None
    if draw.operator.startswith("dissim::"):
        given["backend"] = "reference"
        return as_list(run(draw, list(given.values())))
    if name == "extent":
        return list(plain_torch.extent(given["rows"][0]))
    sides = [given["query"], given["reference"]]
    if name == "score":
        return [plain.score(*sides, given["weight"], given["bias"])]
    gradients = ("grad_query", "grad_reference", "grad_weight", "grad_bias")
    needs = [given[gradient] is not None for gradient in gradients if gradient in given]
    if name == "score_backward":
        return plain.score_backward(given["grad"], *sides, given["weight"], needs)
    rows = {**given, "query": given["query"][0], "reference": given["reference"][0]}
    if name == "listed_scores":
        return [plain.listed_scores(*(rows[argument] for argument in list(rows)[:6]))]
    if "among_same" in rows:
        rows["among"] = "same" if rows["among_same"] else "different"
    if name == "rank":
        counts, nan_rows = plain.rank(RankArguments(*list(rows.values())[:7]))
        return [counts, nan_rows.to(torch.uint8)]
    problem = ARGUMENTS[name](*(rows[field] for field in ARGUMENTS[name]._fields))
    if name in ("hinge_backward", "logsumexp_backward"):
        return getattr(plain, name)(problem, needs)
    if name == "hinge" and given["num_hard_negatives"] < 0:
        problem = problem._replace(num_hard_negatives=None)
    return list(getattr(plain, name)(problem))


def run(draw: Draw, arguments: list):
    namespace, name = draw.operator.split("::")
    tensors = {"dissim::quantized_topk": 8, "dissim::clustered_topk": 6}.get(draw.operator)
    if tensors:  # of codes or clusters, taken as a list
        arguments = [*arguments[: -tensors - 2], arguments[-tensors - 2 : -2], *arguments[-2:]]
    return getattr(getattr(torch.ops, namespace), name)(*arguments)


def as_list(result) -> list:
    return [result.detach()] if isinstance(result, torch.Tensor) else [x.detach() for x in result]


def outputs(draw: Draw, result) -> list:
    if draw.operator in ("dissim::quantized_topk", "dissim::clustered_topk", "dissim::logsumexp"):
        return as_list(result)[:2]
    if draw.operator.startswith("dissim::"):
        return as_list(result)
    if draw.operator == "dissim_native::logsumexp":  # without the bits, which depend on the order of sums
        return draw.arguments[-3:-1]
    if draw.operator == "dissim_native::clustered_topk":
        return draw.arguments[-4:-2]
    return [a for form, a in zip(draw.forms, draw.arguments, strict=True) if "o" in form and a is not None]


def compare(draw: Draw, found: list, expected: list) -> None:
    for x, y in zip(found, expected[: len(found)], strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype, "another shape or dtype than the reference's"
        # A weight's gradient is summed relative to a mean (E2), and exponentials are rounded.
        if "backward" in draw.operator or "logsumexp" in draw.operator:
            magnitudes = (a.double().abs().sum() for a in draw.arguments[:2] if a.is_floating_point())
            bound = 64 * testing.relative_rounding_error(200, torch.float32) * (1 + max(magnitudes))
            bound = bound + testing.relative_rounding_error(4, x.dtype) * y.double().abs()
            same = (x == y) | (x.isnan() & y.isnan())
            assert (same | ((x.double() - y.double()).abs() <= bound)).all(), "another gradient than the reference's"
        else:
            assert torch.equal(x.nan_to_num(), y.nan_to_num()), "other numbers than the reference's"
