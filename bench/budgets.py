"""The limits of what every GPU kernel may cost: one row per kernel. bench/sass.py counts, tests/test_sass.py asserts.

A row names the kernel, how it is compiled, the instruction that completes an element, and its limits: the maximum of
issue slots per element of the main loop. Spills, local memory and loops of unknown length in the main loop are not
allowed at all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .toolchain import CACHE, ROOT, compile_cuda

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Binary:
    """A compiled kernel: its cubin, a part of its demangled name, the dynamic shared memory of its launch."""

    cubin: Path
    part: str
    dynamic_shared: int


@dataclass(frozen=True)
class Budget:
    """work, per_element, elements and turns as in `machine_code.Code.main_loop`."""

    name: str
    build: Callable[..., Binary]
    limits: Mapping[int, float]  # architecture -> issue slots per element
    work: tuple[str, ...] = ("FFMA", "FFMA2")
    per_element: float = 1
    elements: tuple[int, ...] = ()
    turns: int = 0
    needs: tuple[str, ...] = ("cuobjdump", "nvdisasm")


def cuda(stem: str, part: str, dynamic_shared: int = 0) -> Callable[..., Binary]:
    """The kernel of csrc/cuda/<stem>.cu whose demangled name contains `part`."""
    return lambda arch: Binary(compile_cuda(ROOT / "csrc" / "cuda" / f"{stem}.cu", arch), part, dynamic_shared)


def triton(
    stem: str, function: str, signature: Mapping[str, str], constants: Mapping[str, object], **options: object
) -> Callable[..., Binary]:
    """The kernel `function` in dissim_kernels/backends/triton/<stem>.py for these argument types and constants.

    Types are "*fp32", "i32", "constexpr" and so on; the value of a type "*fp32:16" or "i32:16" is divisible by 16.
    options: num_warps and so on. An architecture given by name ("gfx942") is one of AMD.
    """

    def build(arch: int | str) -> Binary:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        module = importlib.import_module(f"dissim_kernels.backends.triton.{stem}")
        kernel = getattr(module, function)
        types = {name: text.split(":")[0] for name, text in signature.items()}
        places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
        divisible = {places[name]: [["tt.divisibility", 16]] for name, text in signature.items() if ":" in text}
        given = {places[name]: value for name, value in constants.items()}
        source = ASTSource(kernel, types, given, divisible)
        target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)
        binary = compile(source, target=target, options=options)
        CACHE.mkdir(parents=True, exist_ok=True)
        cubin = CACHE / f"triton_{stem}_{function}_{arch}_{binary.hash[:16]}.cubin"
        cubin.write_bytes(binary.kernel)
        return Binary(cubin, function, binary.metadata.shared)

    return build


def _arguments(integers: str = "", **others: str) -> dict[str, object]:
    """Types of a Triton kernel's arguments: i32 for `integers`; others: element type -> names of its pointers."""
    types: dict[str, object] = dict.fromkeys(f"rows columns {integers}".split(), "i32") | {"dim": "i32:16"}
    if "split_columns" in types:
        types["split_columns"] = "i32:16"
    for kind, names in others.items():
        types |= dict.fromkeys(names.split(), f"*{kind}:16")
    return types


def _strides(*sides: str, row: object, dim: object) -> dict[str, object]:
    """Types of the strides of [B, rows, D]. Packed tensors have row=1, others dim=1."""
    axes = {"batch": "i32:16", "row": row, "dim": dim}
    return {f"{side}_{axis}": stride for side in sides for axis, stride in axes.items()}


def _triton_row(
    name: str,
    stem: str,
    function: str,
    tile: str,
    acc: str,
    arguments: dict[str, object],
    limits: tuple,
    **options: object,
) -> Budget:
    """A kernel for a large problem with D a multiple of 16, with the tile of the backend's table."""
    work = {"score_max": ("HMMA.16816",)}.get(tile, ("DFMA",) if acc == "fp64" else ("FFMA", "FFMA2"))

    def build(arch: int | str) -> Binary:
        import torch

        from dissim_kernels.backends.triton.tuning import row_of

        chosen = row_of(
            tile, torch.float64 if acc == "fp64" else torch.float32, arch if isinstance(arch, int) else None
        )
        given = {"rows": "i32", "columns": "i32", "dim": "i32:16", **arguments, **chosen.sizes, **options}
        types = {key: value if isinstance(value, str) else "constexpr" for key, value in given.items()}
        constants = {key: value for key, value in given.items() if not isinstance(value, str)}
        launch = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages, "enable_fp_fusion": True}
        return triton(stem, function, types, constants, **launch)(arch)

    return Budget(f"triton {name}", build, dict(zip(ARCHITECTURES, limits, strict=True)), work)


def _triton_rows() -> list[Budget]:
    packed = _strides("query", "reference", row=1, dim="i32:16") | {"PACKED": True}
    plain = _strides("x", "y", row="i32:16", dim=1)
    rows = []
    # The limits hold for every Triton from 3.6 on. The newest takes up to a sixth less.
    for acc, score, backward, topk, hinge, hinge_backward, sparse in (
        (
            "fp32",
            (2.3, 2.3, 1.4),
            {"query": (5.4, 5.3, 4.5), "reference": (6.0, 5.9, 5.1)},
            (2.6, 2.6, 2.1),
            (2.6, 2.6, 2.1),
            (8.3, 8.0, 7.5),
            (9,) * 3,
        ),
        (
            "fp64",
            (2.7, 2.7, 2.7),
            {"query": (11.6, 11.3, 11.3), "reference": (12.5, 11.9, 11.9)},
            (3.0, 3.4, 3.4),
            (3.0, 3.4, 3.4),
            (20.0, 19.0, 19.0),
            (21.5, 21, 21),
        ),
    ):
        given = _arguments("heads", **{acc: "query reference weight bias out"}) | packed
        rows.append(
            _triton_row(f"score {acc}", "score", "score_kernel", "score", acc, given, score, use_max_form=None)
        )
        given = _arguments("batches split_columns", **{acc: "x y grad out"}) | plain
        for side, strides in (("query", ("i32", 1)), ("reference", (1, "i32"))):
            grad = dict(zip(("grad_batch", "grad_row", "grad_column"), ("i32:16", *strides), strict=True))
            name = f"score_backward {side} {acc}"
            rows.append(
                _triton_row(name, "score_backward", "row_sums_kernel", "row_sums", acc, given | grad, backward[side])
            )
        filters = "exclude_index query_labels reference_labels"
        given = _arguments(
            "k splits split_columns", **{acc: "query reference weight bias out", "i64": f"{filters} indices"}
        )
        rows.append(
            _triton_row(
                f"topk {acc}",
                "topk",
                "topk_kernel",
                "topk",
                acc,
                given | packed,
                topk,
                K=32,
                LARGEST=True,
                AMONG_SAME=False,
            )
        )
        pointers = {
            acc: "query reference weight bias limits margin out",
            "i64": f"{filters} limit_indices",
            "u8": "active",
        }
        given = _arguments("split_columns", **pointers) | packed
        rows.append(_triton_row(f"hinge {acc}", "hinge", "hinge_kernel", "hinge", acc, given, hinge))
        pointers = {acc: "query reference weight bias scale min_share out", "i64": filters, "u8": "active"}
        given = _arguments("split_columns", **pointers) | packed
        rows.append(
            _triton_row(
                f"logsumexp {acc}", "logsumexp", "logsumexp_kernel", "logsumexp", acc, given, topk, AMONG_SAME=False
            )
        )
        pointers = {
            acc: "query reference weight bias listed_scores",
            "i64": "offsets indices out",
            "u8": "nan_rows",
        }
        given = _arguments("split_columns", **pointers) | packed
        rows.append(_triton_row(f"rank {acc}", "rank", "rank_kernel", "rank", acc, given, topk))
        pointers = {acc: "x y positive negative out", "i64": "x_labels y_labels", "u8": "active", "i32": "is_sparse"}
        given = _arguments("row_bytes split_columns", **pointers) | plain
        for side in ("query", "reference"):
            rows.append(
                _triton_row(
                    f"hinge_backward {side} {acc}", "hinge", "hinge_row_sums_kernel", "hinge_row_sums", acc, given,
                    hinge_backward, X_IS_QUERY=side == "query",
                )
            )  # fmt: skip
            rows.append(
                _triton_row(
                    f"hinge_backward sparse {side} {acc}", "hinge", "hinge_sparse_row_sums_kernel",
                    "hinge_sparse_row_sums", acc, given, sparse, X_IS_QUERY=side == "query",
                )
            )  # fmt: skip
    for half in ("fp16", "bf16"):
        pointers = {
            half: "query reference weight_parts out",
            "fp32": "query_sums reference_sums unscale bias",
            "i32": "use_max_form",
        }
        given = _arguments("heads padded_rows padded_columns", **pointers)
        rows.append(
            _triton_row(
                f"score max {half}", "max_form", "score_max_kernel", "score_max", "fp32", given, (0.85, 0.75, 0.75),
                INTERPRETED=False,
            )
        )  # fmt: skip
    return rows


def _all(limit: float) -> dict[int, float]:
    """The same limit for all architectures."""
    return dict.fromkeys(ARCHITECTURES, limit)


FLOAT, DOUBLE, PRODUCT = ("FFMA", "FFMA2"), ("DFMA",), ("HMMA.16816",)
HALVES = (("fp16", "__half"), ("bf16", "__nv_bfloat16"))
HALVES_AND_FLOAT = (("fp32", "float"), *HALVES)

BUDGETS: tuple[Budget, ...] = (
    # E1: an addition and a fused multiply-add. A stage has 64 pairs per thread (16 of doubles) and 32 dimensions.
    Budget("score fp32", cuda("score", "score_kernel<float, true>", 73984), _all(2.15), elements=(2048,)),
    Budget("score fp64", cuda("score", "score_kernel<double, true>", 70144), _all(2.6), DOUBLE, elements=(512,)),
    # Max form (E7): four maxima and a product for eight elements.
    *(
        Budget(f"score {name}", cuda("score", f"score_max_kernel<{kind}, true>", 34816), _all(0.75), PRODUCT)
        for name, kind in HALVES
    ),
    # The same for rows that are not 16-byte aligned: a thread loads two rows of a side in a loop, element by element.
    *(
        Budget(
            f"score strided {name}",
            cuda("score", f"score_max_kernel<{kind}, false>", 34816),
            _all(1.1),
            PRODUCT,
            turns=2,
        )
        for name, kind in HALVES
    ),
    # E1 for the tiles that the max form leaves to it; half types are loaded element by element.
    *(
        Budget(
            f"score by E1 {name}", cuda("score", f"score_kernel<{kind}, false>", 73984), _all(2.35), elements=(2048,)
        )
        for name, kind in HALVES
    ),
    # E2, both sides: a sign by keys in one instruction, which sm_80 does not have, and two fused multiply-adds. The
    # sums of upstream gradients add three per 64 elements.
    *(
        Budget(
            f"score_backward {name}",
            cuda("score_backward", f"sign_keys_kernel<MatrixGradients<{kind}> >", 98560),
            {80: 5.4, 90: 3.4, 100: 3.4},
            per_element=2 + 3 / 64,
            elements=(512, 4096),
        )
        for name, kind in HALVES_AND_FLOAT
    ),
    # The general kernel: a sign is two comparisons and their difference.
    *(
        Budget(
            f"score_backward general {name}",
            cuda("score_backward", f"sign_sums_kernel<MatrixGradients<{kind}>, true>", 40960),
            _all(5.7),
            per_element=2,
            elements=(512,),
        )
        for name, kind in HALVES_AND_FLOAT
    ),
    # The tile of the score. The epilogue runs once for all dimensions and is not in the main loop.
    *(
        Budget(f"{stem} {name}", cuda(stem, f"{stem}_kernel<{kind}>", shared), _all(bar), work, elements=(elements,))
        for stem in ("topk", "hinge", "logsumexp", "rank")
        for name, kind, shared, bar, work, elements in (
            ("fp32", "float, true", 73984, 2.15, FLOAT, 2048),
            ("fp64", "double, true", 70144, 2.6, DOUBLE, 512),
            ("fp16", "__half, false", 73984, 2.35, FLOAT, 2048),
            ("bf16", "__nv_bfloat16, false", 73984, 2.35, FLOAT, 2048),
        )
    ),
    # As score_backward; computing a gradient from bits and labels takes more instructions than loading it.
    Budget(
        "hinge_backward fp32",
        cuda("hinge_backward", "sign_keys_kernel<PairGradients<float> >", 98560),
        {80: 5.6, 90: 3.6, 100: 3.6},
        per_element=2 + 3 / 64,
        elements=(512, 4096),
        turns=4,
    ),
    Budget(
        "hinge_backward fp64",
        cuda("hinge_backward", "sign_sums_kernel<PairGradients<double>, true>", 40960),
        _all(13.5),
        DOUBLE,
        per_element=2,
        elements=(64, 512),
    ),
    # Few active pairs: one side's elements of an active pair, 16 per lane or 8 of doubles.
    *(
        Budget(
            f"hinge_backward sparse {side} {name}",
            cuda("hinge_backward", f"active_pairs_kernel<{kind}, {own_is_query}>"),
            _all(bar),
            work,
        )
        for name, kind, bar, work in (("fp32", "float", 7.2, FLOAT), ("fp64", "double", 14.5, DOUBLE))
        for side, own_is_query in (("query", "true"), ("reference", "false"))
    ),
    # A pair per thread: three loads from global memory and their addresses for each element.
    *(
        Budget(f"listed_scores {name}", cuda("listed_scores", f"listed_scores_kernel<{kind}>"), _all(bar), work)
        for name, kind, bar, work in (("fp32", "float", 14.5, FLOAT), ("fp64", "double", 14.5, DOUBLE))
    ),
    # E10: four elements per instruction, for rows of any dtype. A stage has 64 pairs per thread and 16 groups of 8
    # columns.
    Budget(
        "quantized fp32",
        cuda("quantized_topk", "quantized_scan_kernel", 65536),
        _all(0.3),
        ("VABSDIFF4",),
        elements=(8192,),
    ),
    *_triton_rows(),
)
