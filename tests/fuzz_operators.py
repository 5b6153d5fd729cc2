"""Calls every operator with random arguments, whole and damaged: each gives the right numbers or an error in words.

    python tests/fuzz_operators.py --seed 0 --count 1000

Whether a call is right is judged by FORMS, which says anew what each operator takes. Right calls are compared with the
backend "reference". A call is drawn from the seed and its number alone; --first repeats one that failed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import traceback

import torch

import dissim_kernels
from dissim_kernels import testing as judge
from dissim_kernels.backends import codes as plain_torch
from dissim_kernels.backends import native
from dissim_kernels.backends import reference as plain

#: operator -> its arguments: name, type [sizes] flags. Types: E embeddings, P embeddings or accumulate dtype, A the
#: accumulate dtype, others by name; ? may be None, c contiguous, o an output: contiguous, memory of its own.
SCORE = "query:E[B,N,D] reference:E[B,M,D] weight:{}[C,D]{} bias:{}[C]{}?"
ROWS = "query:E[{0}N,D] reference:E[{0}M,D] weight:{1}[D]{2} bias:{1}[1]{2}?"
FILTERS = "exclude:int64[N]{0}? query_labels:int64[N]{0}? reference_labels:int64[M]{0}?"
SIDES = "query_labels:int64[N]{0} reference_labels:int64[M]{0}"
HINGE = "grad_positive:A[N]{0} grad_negative:A[N]{0} active:uint8[N,up(M,8)]{0} query:E[{1}N,D] reference:E[{1}M,D]"
CODES = "codes:uint8[up(N,16),G,16,8]{0} errors:int32[16*up(N,16)]{0}"
OTHER_CODES = CODES.replace("N", "M")
FORMS = {
    "dissim::score": SCORE.format("P", "", "P", "") + " backend:backend",
    "dissim::score_backward": "grad:E[B,C,N,M] " + SCORE.format("P", "", "P", "").rsplit(" ", 1)[0]
    + " backend:backend need_query:bool need_reference:bool need_weight:bool",
    "dissim::topk": ROWS.format("", "P", "") + " k:k largest:bool " + FILTERS.format("") + " backend:backend",
    "dissim::hinge": ROWS.format("", "P", "") + " " + SIDES.format("")
    + " exclude:int64[N]? margin:float hard_negatives:count? backend:backend",
    "dissim::hinge_backward": HINGE.format("", "") + " weight:P[D] " + SIDES.format("") + " needs:flags backend:backend",
    "dissim_native::score": SCORE.format("A", "c", "A", "c") + " out:E[B,C,N,M]o",
    "dissim_native::score_backward": "grad:E[B,C,N,M] " + SCORE.format("A", "c", "A", "c").rsplit(" ", 1)[0]
    + " grad_query:E[B,N,D]o? grad_reference:E[B,M,D]o? grad_weight:A[C,D]o?",
    "dissim_native::topk": ROWS.format("1,", "A", "c") + " k:k largest:bool " + FILTERS.format("c")
    + " scores:A[N,K]o indices:int64[N,K]o",
    "dissim_native::hinge": ROWS.format("1,", "A", "c") + " " + SIDES.format("c")
    + " exclude:int64[N]c? margin:float hard_negatives:hard positive:A[N]o negative:A[N]o active:uint8[N,up(M,8)]o",
    "dissim_native::hinge_backward": HINGE.format("c", "1,") + " weight:A[D]c " + SIDES.format("c")
    + " grad_query:E[N,D]o? grad_reference:E[M,D]o? grad_weight:A[D]o? grad_bias:A[1]o?",
    "dissim_native::extent": "rows:E[1,N,D] low:A[D]o high:A[D]o",
    "dissim_native::quantise": "rows:E[1,N,D] columns:columns[8*G]c low:A[8*G]c inverse:A[8*G]c top:A[8*G]c"
    " positive:groups step:float extra:float " + CODES.format("o") + " bases:float64[N]o?",
    "dissim_native::certified": ROWS.format("1,", "A", "c") + " k:k largest:bool " + FILTERS.format("c")
    + " positive:positive[]c step:float64[]c query_" + CODES.format("c").replace(" ", " query_")
    + " bases:float64[N]c reference_" + OTHER_CODES.format("c").replace(" ", " reference_")
    + " scores:A[N,K]o indices:int64[N,K]o rescored:int64[N]o",
}  # fmt: skip
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHER_DTYPES = (*DTYPES, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
ACC = dict(zip(DTYPES, (torch.float32, torch.float32, torch.float32, torch.float64), strict=True))
INTEGERS = {"int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8, "columns": torch.int64,
            "positive": torch.int64, "float64": torch.float64}  # fmt: skip
#: What an error of ours looks like, and what torch says of calls that never reach us.
WORDS = re.compile(
    r"^[\w.\[\] ]+: expected .+, got .+\. [A-Z]|cannot run this call: |Could not run '|expected (?:at most|a value)|"
    r"is missing value for argument|Expected a value of type|not implemented for|Overflow when unpacking|"
    r"The tensor has a non-zero number of elements, but its data is not allocated|could not be converted|"
    r"Cannot access data pointer|no fake impl or Meta kernel",
    re.DOTALL,
)


def up(count: int, size: int) -> int:
    return -(-count // size)


def usable(tensor: torch.Tensor) -> bool:
    """Whether it can be damaged once more."""
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and not shrunk(tensor)


def shrunk(tensor: torch.Tensor) -> bool:
    """Whether its storage ends before its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return tensor.numel() > 0 and needed > tensor.untyped_storage().nbytes()


class Form:
    """One argument as FORMS writes it."""

    def __init__(self, text: str):
        self.name, kind = text.split(":")
        self.kind, sizes, self.flags = re.fullmatch(r"(\w+)(?:\[(.*)\])?([co]*\??)", kind).groups()
        self.sizes = None if sizes is None else re.findall(r"(?:[^,(]|\([^)]*\))+", sizes)

    def __contains__(self, flag: str) -> bool:
        return flag in self.flags


PARSED = {name: [Form(text) for text in form.split()] for name, form in FORMS.items()}


class Draw:
    """The arguments of a call."""

    def __init__(self, seed: int, number: int):
        self.rng = random.Random(f"{seed} {number}")
        torch.manual_seed(self.rng.getrandbits(40))
        self.operator = self.rng.choice(list(PARSED))
        self.forms = PARSED[self.operator]
        pick = self.rng.choice
        self.sizes = {"B": pick((1, 1, 2, 3, 0)), "N": pick((0, 1, 2, 5, 16, 17, 33)), "M": pick((0, 1, 3, 8, 17, 70)),
                      "D": pick((0, 1, 3, 8, 17, 40, 150)), "C": pick((1, 1, 2, 3, 0)), "G": pick((0, 1, 2, 4))}  # fmt: skip
        if self.sizes["D"] == 0 and self.operator == "dissim_native::quantise" or self.operator.endswith("certified"):
            self.sizes["G"] = min(self.sizes["G"], up(self.sizes["D"], 8))
        self.sizes["K"] = self.rng.randint(0, self.sizes["M"])
        self.dtype = pick(DTYPES)
        self.arguments = [self.whole(form) for form in self.forms]
        for _ in range(pick((0, 0, 1, 1, 2))):
            self.damage(self.rng.randrange(len(self.forms)))

    def whole(self, form: Form):
        pick = self.rng.choice
        if "?" in form and pick((True, False)):
            return None
        if form.sizes is None:
            return {"backend": lambda: pick(("cpu", "cpu", "reference", "auto", "triton", "cuda", "none")),
                    "bool": lambda: pick((True, False)), "flags": lambda: [pick((True, False)) for _ in range(4)],
                    "k": lambda: self.sizes["K"], "float": lambda: pick((0.0, 1.0, 2.5, -1.0)),
                    "count": lambda: pick((0, 1, 3, 100)), "hard": lambda: pick((-1, 0, 1, 3, 100)),
                    "groups": lambda: self.rng.randint(0, self.sizes["G"])}[form.kind]()  # fmt: skip
        sizes = [eval(size, {"up": up}, self.sizes) for size in form.sizes]
        values = self.values(form, sizes)
        return values if "c" in form or "o" in form else self.laid_out(values)

    def values(self, form: Form, sizes: list[int]) -> torch.Tensor:
        """Small integers and quarters, so that every sum is exact; labels and numbers of rows that may not exist."""
        if form.kind in ("E", "P", "A"):
            acc = form.kind == "A" or (form.kind == "P" and self.rng.random() < 0.5)
            quarter = 4 if form.name in ("weight", "bias") else 1
            return (torch.randint(-2, 3, sizes) / quarter).to(ACC[self.dtype] if acc else self.dtype)
        if form.kind == "columns":
            return torch.randint(0, max(1, self.sizes["D"]), sizes)
        if form.kind == "positive":
            return torch.tensor(self.rng.randint(0, self.sizes["G"]))
        if form.name == "exclude":
            return torch.randint(-1, self.sizes["M"] + 2, sizes)
        if form.name == "active":
            bits = torch.randint(0, 2, (sizes[0], self.sizes["M"]), dtype=torch.uint8)
            bits = torch.nn.functional.pad(bits, (0, 8 * sizes[1] - self.sizes["M"]))
            return (bits.unflatten(1, (sizes[1], 8)) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
        return torch.randint(0, 3, sizes).to(INTEGERS[form.kind])

    def laid_out(self, values: torch.Tensor) -> torch.Tensor:
        """The same values with other strides; the storage ends with the last of them."""
        layout = self.rng.choice(("plain", "plain", "transposed", "sliced", "repeated", "late"))
        if layout == "transposed" and values.dim() > 1:
            return values.mT.contiguous().mT
        if layout == "repeated" and values.dim() and values.shape[0]:
            return values[:1].expand(values.shape)
        if layout in ("sliced", "late") and values.numel():
            step, start = (2, 0) if layout == "sliced" else (1, 3)
            strides = [step * stride for stride in values.contiguous().stride()]
            last = sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
            return values.new_zeros(start + last + 1).as_strided(values.shape, strides, start).copy_(values)
        return values

    def damage(self, i: int) -> None:
        value, pick = self.arguments[i], self.rng.choice
        if isinstance(value, torch.Tensor) and not usable(value):
            return
        if isinstance(value, torch.Tensor):
            value = self.damaged(self.forms[i], value, pick(("dtype", "shape", "shape", "strides", "meta", "none", "sparse", "storage",
                                              "alias", "alias", "values", "needs grad", "negated")))  # fmt: skip
        elif isinstance(value, bool):
            value = not value
        elif isinstance(value, int):
            value = pick((-1, -2, 2**62, -(2**63), 2**63 - 1, self.sizes["M"] + 1, None, 1.5))
        elif isinstance(value, float):
            value = pick((float("nan"), float("inf"), -1e300, None))
        elif isinstance(value, list):
            value = pick((value[:-1], [*value, True], [], None))
        elif isinstance(value, str):
            value = pick(("", "CPU", None))
        else:
            value = pick((0, torch.zeros(3), torch.zeros(self.sizes["N"], dtype=torch.int64)))
        self.arguments[i] = value

    def damaged(self, form: Form, tensor: torch.Tensor, kind: str):
        pick = self.rng.choice
        if kind == "dtype":
            return tensor.to(pick(OTHER_DTYPES))
        if kind == "shape":
            if tensor.dim() == 0 or self.rng.random() < 0.2:
                return tensor[None]
            axis = self.rng.randrange(tensor.dim())
            if self.rng.random() < 0.2 and tensor.shape[axis]:
                return tensor.select(axis, 0)
            size = tensor.shape[axis]
            kept = torch.arange(pick((0, 1, max(0, size - 1), size + 1, 2 * size)))
            return tensor.index_select(axis, kept % size) if size else tensor.new_zeros(
                [len(kept) if d == axis else s for d, s in enumerate(tensor.shape)])  # fmt: skip
        if kind == "storage" and self.operator.startswith("dissim_native") and tensor.numel():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            size = tensor.numel() * tensor.element_size()
            tensor.untyped_storage().resize_(pick((0, size // 2, size - 1)))
            return tensor
        if kind == "alias":  # the memory of another argument, where it is long enough
            others = [x for x in self.arguments if isinstance(x, torch.Tensor) and x.dtype == tensor.dtype
                      and x is not tensor and usable(x)]  # fmt: skip
            fits = [x for x in others if x.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()]
            if fits:
                return pick(fits).detach().as_strided(tensor.shape, tensor.contiguous().stride(), 0)
        if kind == "values" and not tensor.is_complex():
            return torch.full_like(tensor, pick((0, 1, 100)) if tensor.dtype == torch.uint8 else pick((-3, 0, 10**4)))
        if kind in ("needs grad", "negated") and "o" in form:  # torch itself writes into none of them
            return tensor
        changes = {"strides": self.laid_out, "meta": lambda x: x.to("meta"), "none": lambda x: None,
                   "sparse": lambda x: x.to_sparse(), "needs grad": self.wanted, "negated": self.negated}  # fmt: skip
        return changes.get(kind, lambda x: x)(tensor)

    @staticmethod
    def wanted(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor

    @staticmethod
    def negated(tensor: torch.Tensor) -> torch.Tensor:
        return torch._neg_view(tensor.detach()) if tensor.is_floating_point() else tensor

    def described(self) -> str:
        lines = [self.operator]
        for form, value in zip(self.forms, self.arguments, strict=True):
            text = repr(value)
            if isinstance(value, torch.Tensor):
                text = f"{value.dtype} {list(value.shape)} on {value.device}"
                text += f" strides {value.stride()}" if value.layout == torch.strided else f" {value.layout}"
                text += ", negated" * value.is_neg() + ", needs grad" * value.requires_grad
            lines.append(f"  {form.name} = {text}")
        return "\n".join(lines)


# --- whether a call is right -----------------------------------------------------------------------------------------


def misfit(draw: Draw) -> str | None:
    """The first argument that does not fit its form; None where all do."""
    known: dict[str, int] = {}
    tensors = [(f, a) for f, a in zip(draw.forms, draw.arguments, strict=True) if f.sizes is not None]
    for form, value in zip(draw.forms, draw.arguments, strict=True):
        if value is None and "?" not in form:
            return form.name
        numbers = {"k": int, "count": int, "hard": int, "groups": int, "float": (int, float), "bool": (bool, int)}
        if value is not None and not isinstance(value, numbers.get(form.kind, object if form.sizes is None else torch.Tensor)):
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
            if symbol.isalpha() and known.setdefault(symbol, size) != size:
                return form.name
    for form, value in tensors:
        for size, given in zip(form.sizes, value.shape, strict=True):
            if "G" in size and "G" not in known:
                known["G"] = given // 8
            if eval(size, {"up": up}, known) != given:
                return form.name
    return wrong_number(draw, known) or wrong_memory(tensors)


def wrong_number(draw: Draw, known: dict[str, int]) -> str | None:
    given = dict(zip((form.name for form in draw.forms), draw.arguments, strict=True))
    if "query_labels" in given and (given["query_labels"] is None) != (given["reference_labels"] is None):
        return "query_labels"
    for form, value in zip(draw.forms, draw.arguments, strict=True):
        if value is None:
            continue
        if form.kind == "k" and not (0 <= value <= known["M"] and known.get("K", value) == value):
            return "k"
        if form.kind in ("count", "hard") and value < -(form.kind == "hard"):
            return form.name
        if form.kind == "backend" and value not in ("cpu", "reference", "auto"):
            return "backend"
        if form.kind == "flags" and len(value) != 4:
            return form.name
        if form.kind in ("groups", "positive") and not 0 <= int(value) <= known["G"]:
            return form.name
        if form.kind == "columns" and value.numel() and not (0 <= value.min() and value.max() < known["D"]):
            return form.name
    if draw.operator.endswith("hinge_backward") and given.get("backend") != "reference" and known["M"] % 8:
        if (given["active"][:, -1].int() >> known["M"] % 8).any():
            return "active"
    if draw.operator == "dissim_native::certified" and known["G"] > up(known["D"], 8) + 1:
        return "codes"
    if draw.operator == "dissim::topk":
        filters = {name: given[name] for name in ("exclude", "query_labels", "reference_labels")}
        if given["k"] and (judge.plain_candidates(known["N"], known["M"], **filters).sum(1) < given["k"]).any():
            return "k"
    return None


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


# --- calls -----------------------------------------------------------------------------------------------------------


def expected(draw: Draw) -> list | None:
    """What the reference gives, in the order of the outputs; None where it is not asked."""
    given = dict(zip((form.name for form in draw.forms), draw.arguments, strict=True))
    name = draw.operator.split("::")[1]
    if draw.operator.startswith("dissim::"):
        given["backend"] = "reference"
        with torch.no_grad():
            found = getattr(torch.ops.dissim, name)(*given.values())
        return [found] if isinstance(found, torch.Tensor) else list(found)
    first = [given.get(key) for key in ("query", "reference", "weight", "bias")]
    if name == "score":
        return [plain.score(*first)]
    if name == "topk":
        rows = [given[key][0] for key in ("query", "reference")]
        return list(plain.topk(judge_search(rows, given)))
    if name == "extent":
        return list(plain_torch.extent(given["rows"][0]))
    return None


def judge_search(rows, given):
    from dissim_kernels.contract import Search

    names = ("weight", "bias", "k", "largest", "exclude", "query_labels", "reference_labels")
    return Search(*rows, *(given[name] for name in names))


def outputs(draw: Draw, result) -> list:
    if draw.operator.startswith("dissim::"):
        return [result] if isinstance(result, torch.Tensor) else list(result)
    return [a for form, a in zip(draw.forms, draw.arguments, strict=True) if "o" in form]


def compare(draw: Draw, found: list, wanted: list) -> None:
    assert len(found) == len(wanted)
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype, "another shape or dtype than the reference's"
        if "backward" in draw.operator:  # a weight's gradient is summed about a mean (E2)
            sizes = (a.double().abs().sum() for a in draw.arguments[:2] if a.is_floating_point())
            bound = 64 * judge.rounding(200, torch.float32) * (1 + max(sizes)) + judge.rounding(4, x.dtype) * y.double().abs()
            assert ((x.double() - y.double()).abs() <= bound).all(), "another gradient than the reference's"
        else:
            assert torch.equal(x.nan_to_num(), y.nan_to_num()), "other numbers than the reference's"


def call(draw: Draw) -> str:
    """One call, whose outcome is told; raises AssertionError where it is wrong."""
    namespace, name = draw.operator.split("::")
    try:
        wrong = misfit(draw)
    except Exception as error:
        raise AssertionError(f"the oracle failed: {error!r}") from error
    operator = getattr(getattr(torch.ops, namespace), name)
    try:
        result = operator(*draw.arguments)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        assert WORDS.search(str(error)), f"no words: {type(error).__name__}: {error}"
        assert wrong is not None, f"every argument fits, but: {error}"
        return "refused"
    assert wrong is None, f"{wrong} does not fit, but the call returned"
    wanted = expected(draw)
    if wanted is None:
        return "ran"
    compare(draw, outputs(draw, result), wanted)
    return "compared"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--progress", default=os.devnull, help="a file that holds the number of the running call")
    options = parser.parse_args()
    torch.set_num_threads(2)
    told: dict[str, int] = {}
    with open(options.progress, "w") as progress:
        for number in range(options.first, options.first + options.count):
            os.pwrite(progress.fileno(), f"{number:12}\n".encode(), 0)
            draw = Draw(options.seed, number)
            try:
                outcome = call(draw)
            except Exception:
                traceback.print_exc()
                raise SystemExit(f"call {number} of seed {options.seed}:\n{draw.described()}") from None
            told[outcome] = told.get(outcome, 0) + 1
    print(f"{options.count} calls: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(told.items())))


if __name__ == "__main__":
    assert native.NOT_LOADED is None and dissim_kernels
    main()
