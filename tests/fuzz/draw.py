"""Random arguments of a call. Up to two of the valid arguments are then damaged."""

from __future__ import annotations

import random

import torch
from forms import ACC, CLUSTERS, DTYPES, INTEGERS, PARSED, QUANTIZED, Form, up

from dissim_kernels import cluster_references, quantize_references
from dissim_kernels.contract import AMONG

OTHER_DTYPES = (*DTYPES, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
DAMAGES = ("dtype", "shape", "shape", "strides", "meta", "none", "sparse", "storage", "alias", "alias", "values",
           "needs grad", "negated")  # fmt: skip


def usable(tensor: torch.Tensor) -> bool:
    """Whether it can be damaged once more."""
    return (
        tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_neg() and not shrunk(tensor)
    )


def shrunk(tensor: torch.Tensor) -> bool:
    """Whether its storage ends before its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return tensor.numel() > 0 and needed > tensor.untyped_storage().nbytes()


class Draw:
    """The arguments of a call."""

    def __init__(self, seed: int, number: int):
        self.rng = random.Random(f"{seed} {number}")
        torch.default_generator.manual_seed(self.rng.getrandbits(40))
        self.operator = self.rng.choice(list(PARSED))
        self.forms = PARSED[self.operator]
        pick = self.rng.choice
        choices = {"B": (1, 1, 2, 3, 0), "N": (0, 1, 2, 5, 16, 17, 33), "M": (0, 1, 3, 8, 17, 70),
                   "D": (0, 1, 3, 8, 17, 40, 150), "C": (1, 1, 2, 3, 0), "G": (0, 1, 2, 4)}  # fmt: skip
        self.sizes = {symbol: pick(sizes) for symbol, sizes in choices.items()}
        self.sizes["G"] = min(self.sizes["G"], up(self.sizes["D"], 8))
        self.clustered = self.operator.endswith("clustered_topk")
        if self.clustered:
            # The search is plain if the clusters nearest to a query have more than M / 128 rows or fewer than k.
            self.sizes["M"] = pick((130, 400, 1500))
        self.sizes["K"] = self.rng.randint(0, 3 if self.clustered else self.sizes["M"])
        self.sizes["L"] = 1  # clusters; replaced below
        self.centers = torch.randint(-2, 3, (pick((6, self.sizes["M"] // 4 + 1)), self.sizes["D"]))
        self.sizes["P"] = pick((0, 1, 5, 40, 300)) if self.sizes["N"] and self.sizes["M"] else 0
        self.dtype = pick(DTYPES)
        self.arguments = [self.valid(form) for form in self.forms]
        self.comparable = True  # with the result of the backend "reference"
        self.clusters_fit = True  # the references and weights that they were made for
        if self.operator == "dissim::quantized_topk":
            self.arguments[-10:-1] = quantize_references(*self.arguments[1:3])
        if self.clustered:
            self.make_clusters()
        if self.operator.endswith("::rank"):
            self.sort_lists()
        for _ in range(pick((0, 0, 1, 1, 2))):
            self.damage(self.rng.randrange(len(self.forms)))

    def valid(self, form: Form):
        pick = self.rng.choice
        if "?" in form and pick((True, False)):
            return None
        if form.sizes is None:
            drawn = {"backend": lambda: pick(("cpu", "cpu", "reference", "auto", "triton", "cuda", "none")),
                     "bool": lambda: pick((True, False)), "flags": lambda: [pick((True, False)) for _ in range(4)],
                     "flags3": lambda: [pick((True, False)) for _ in range(3)], "among": lambda: pick(AMONG),
                     "k": lambda: self.sizes["K"], "rows": lambda: self.sizes["M"],
                     "float": lambda: pick((0.0, 1.0, 2.5, -1.0)), "count": lambda: pick((0, 1, 3, 100)),
                     "hard": lambda: pick((-1, 0, 1, 3, 100)),
                     "groups": lambda: self.rng.randint(0, self.sizes["G"])}  # fmt: skip
            return drawn[form.kind]()
        sizes = form.sizes_for(self.sizes)
        values = self.values(form, sizes)
        return values if "c" in form or "o" in form else self.with_layout(values)

    def values(self, form: Form, sizes: list[int]) -> torch.Tensor:
        """Small integers and quarters, so that every sum is exact; labels; indices of rows, also invalid ones."""
        if form.name == "scale":  # small, so that no share is infinite, as is a large log-sum-exp
            return torch.randint(-2, 3, sizes).to(ACC[self.dtype]) / 64
        if form.name == "value" and "o" not in form:
            return torch.randint(8, 13, sizes).to(ACC[self.dtype])
        if self.clustered and form.name in ("query", "reference"):
            return self.clustered_rows(sizes).to(self.dtype)
        if form.kind in ("E", "P", "A"):
            acc = form.kind == "A" or (form.kind == "P" and self.rng.random() < 0.5)
            quarter = 4 if form.name in ("weight", "bias") else 1
            return (torch.randint(-2, 3, sizes) / quarter).to(ACC[self.dtype] if acc else self.dtype)
        if form.kind == "dim_order":
            return torch.randint(0, max(1, self.sizes["D"]), sizes)
        if form.kind == "positive":
            return torch.tensor(self.rng.randint(0, self.sizes["G"]))
        if form.kind == "offsets":
            offsets = torch.randint(0, self.sizes["P"] + 1, sizes).sort().values
            offsets[0], offsets[-1] = 0, self.sizes["P"]
            return offsets
        if form.kind == "indices":
            return torch.randint(0, max(1, self.sizes["M"]), sizes)
        if form.name == "exclude_index":
            return torch.randint(-1, self.sizes["M"] + 2, sizes)
        if form.name == "active":
            bits = torch.randint(0, 2, (sizes[0], self.sizes["M"]), dtype=torch.uint8)
            bits = torch.nn.functional.pad(bits, (0, 8 * sizes[1] - self.sizes["M"]))
            return (bits.unflatten(1, (sizes[1], 8)) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
        return torch.randint(0, 3, sizes).to(INTEGERS[form.kind])

    def clustered_rows(self, sizes: list[int]) -> torch.Tensor:
        """Rows around the centers, often equal ones; sometimes one that is not finite."""
        centers = self.centers[torch.randint(0, len(self.centers), sizes[:-1])]
        noise = torch.randint(-2, 3, sizes) * torch.randint(0, 2, [*sizes[:-1], 1])
        rows = (8 * centers + noise).double()
        if rows.numel() and not self.rng.randrange(4):
            special = self.rng.choice((float("nan"), float("inf"), -float("inf")))
            rows.view(-1)[self.rng.randrange(rows.numel())] = special
        return rows

    def make_clusters(self) -> None:
        reference, weight = self.arguments[1:3]
        count = self.rng.choice((1, 7, self.sizes["M"] // 4, self.sizes["M"] // 2))
        made = cluster_references(reference.flatten(0, -2), weight, num_clusters=count)
        if self.operator.startswith("dissim_native"):
            self.arguments[-9:-4] = made.pivots[None], *made[1:5]
        else:
            self.arguments[-8:-1] = made

    def sort_lists(self) -> None:
        """Sorts each query's pairs as the operator expects them, best first, and makes their indices differ.

        These are not the scores of the references, so those of a long list, which are looked up, are in other shards.
        """
        given = {form.name: i for i, form in enumerate(self.forms)}
        at_indices, at_scores = given["indices"], given.get("scores", given.get("listed_scores"))
        offsets, scores = self.arguments[given["offsets"]], self.arguments[at_scores].clone()
        count, references = len(scores), self.sizes["M"]
        indices = torch.randperm(count) + self.rng.choice((-count, references, *((-3,) if count <= 64 else ())))
        for begin, end in zip(offsets.tolist(), offsets[1:].tolist(), strict=False):
            order = sorted(range(begin, end), key=lambda i: (-scores[i].item(), indices[i].item()))
            scores[begin:end], indices[begin:end] = scores[order], indices[order]
        self.arguments[at_indices], self.arguments[at_scores] = indices, scores

    def with_layout(self, values: torch.Tensor) -> torch.Tensor:
        """The same values with other strides. The storage ends at the last value."""
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
            value = self.damaged(self.forms[i], value, pick(DAMAGES))
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
            tensors = (torch.zeros(3), torch.zeros(self.sizes["N"], dtype=torch.int64))
            value = 0 if self.forms[i].sizes is None else pick((0, *tensors))
        if self.operator.endswith("::rank"):  # the lists are no longer sorted
            self.comparable &= self.forms[i].name not in ("offsets", "indices", "scores", "listed_scores")
        if "logsumexp" in self.operator:  # shares may overflow
            self.comparable &= self.forms[i].name in ("among", "among_same", "backend", "needs", "active")
        if self.operator == "dissim::quantized_topk":  # codes of other references give other results
            self.comparable &= f" {self.forms[i].name}:" not in " reference:" + QUANTIZED
        if self.clustered:
            self.clusters_fit &= f" {self.forms[i].name}:" not in " reference: weight:" + CLUSTERS
            self.comparable &= self.clusters_fit
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
        if kind == "alias":  # the memory of another argument that is large enough
            others = [x for x in self.arguments if isinstance(x, torch.Tensor) and x.dtype == tensor.dtype
                      and x is not tensor and usable(x)]  # fmt: skip
            fits = [x for x in others if x.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()]
            if fits:
                return pick(fits).detach().as_strided(tensor.shape, tensor.contiguous().stride(), 0)
        if kind == "values" and not tensor.is_complex():
            if form.name == "radii" and tensor.is_floating_point():
                return torch.full_like(tensor, pick((float("nan"), -1e30, 1e30, float("inf"))))
            return torch.full_like(tensor, pick((0, 1, 100)) if tensor.dtype == torch.uint8 else pick((-3, 0, 16)))
        if kind == "needs grad" and "o" in form:  # torch itself raises for outputs that require gradients
            return tensor
        if kind == "negated" and self.operator.startswith("dissim_native"):  # torch passes contiguous copies
            return tensor
        changes = {"strides": self.with_layout, "meta": lambda x: x.to("meta"),
                   "none": lambda x: None, "sparse": lambda x: x.to_sparse(), "needs grad": self.requiring_grad,
                   "negated": self.negated}  # fmt: skip
        return changes.get(kind, lambda x: x)(tensor)

    @staticmethod
    def requiring_grad(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor

    @staticmethod
    def negated(tensor: torch.Tensor) -> torch.Tensor:
        return torch._neg_view(tensor.detach().contiguous()) if tensor.is_floating_point() else tensor

    def described(self) -> str:
        lines = [self.operator]
        for form, value in zip(self.forms, self.arguments, strict=True):
            text = "" if isinstance(value, torch.Tensor) else repr(value)
            if isinstance(value, torch.Tensor):
                text = f"{value.dtype} {list(value.shape)} on {value.device}"
                text += f" strides {value.stride()}" if value.layout == torch.strided else f" {value.layout}"
                text += ", negated" * value.is_neg() + ", needs grad" * value.requires_grad
            lines.append(f"  {form.name} = {text}")
        return "\n".join(lines)
