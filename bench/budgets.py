"""What every GPU kernel may cost: one row a kernel, counted by bench/sass.py, asserted by tests/test_sass.py.

A row names the kernel, how it is compiled, which instruction finishes an element, and its bars: the most issue slots
an element of the main loop may take. Spills, local memory and loops of unknown length inside the main loop have no
bar: they are not allowed.
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
    """A compiled kernel: its cubin, a part of its (demangled) name, the dynamic shared memory of its launch."""

    cubin: Path
    part: str
    dynamic_shared: int


@dataclass(frozen=True)
class Budget:
    """work, per_element and elements as in `machine_code.Code.main_loop`."""

    name: str
    build: Callable[[int], Binary]
    bars: Mapping[int, float]  # architecture -> issue slots per element
    work: tuple[str, ...] = ("FFMA", "FFMA2")
    per_element: float = 1
    elements: tuple[int, ...] = ()
    needs: tuple[str, ...] = ("cuobjdump", "nvdisasm")


def cuda(stem: str, part: str, dynamic_shared: int = 0) -> Callable[[int], Binary]:
    """The kernel of csrc/cuda/<stem>.cu whose demangled name has this part."""
    return lambda arch: Binary(compile_cuda(ROOT / "csrc" / "cuda" / f"{stem}.cu", arch), part, dynamic_shared)


def triton(
    stem: str, function: str, signature: Mapping[str, str], constants: Mapping[str, object], **options: object
) -> Callable[[int], Binary]:
    """The kernel of that name in dissim_kernels/backends/triton/<stem>.py, compiled for these types ("*fp32", "i32",
    "constexpr") and constants; a type "*fp32:16" or "i32:16" is divisible by 16. options: num_warps and so on."""

    def build(arch: int) -> Binary:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        module = importlib.import_module(f"dissim_kernels.backends.triton.{stem}")
        kernel = getattr(module, function)
        types = {name: text.split(":")[0] for name, text in signature.items()}
        places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
        divisible = {places[name]: [["tt.divisibility", 16]] for name, text in signature.items() if ":" in text}
        given = {places[name]: value for name, value in constants.items()}
        source = ASTSource(kernel, types, given, divisible)
        made = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        CACHE.mkdir(parents=True, exist_ok=True)
        cubin = CACHE / f"triton_{stem}_{function}_{arch}_{made.hash[:16]}.cubin"
        cubin.write_bytes(made.asm["cubin"])
        return Binary(cubin, function, made.metadata.shared)

    return build


def _all(bar: float) -> dict[int, float]:
    return dict.fromkeys(ARCHITECTURES, bar)


BUDGETS: tuple[Budget, ...] = (
    # E1: an addition and a fused multiply-add. 64 pairs of a thread by 32 dimensions; of doubles 16.
    Budget("score fp32", cuda("score", "score_kernel<float, true>", 73984), _all(2.25), elements=(2048,)),
    Budget("score fp64", cuda("score", "score_kernel<double, true>", 70144), _all(2.75), ("DFMA",), elements=(512,)),
    # E7: four maxima and a product for eight elements.
    *(
        Budget(f"score {name}", cuda("score", f"score_max_kernel<{kind}, true>", 34816), _all(0.75), ("HMMA.16816",))
        for name, kind in (("fp16", "__half"), ("bf16", "__nv_bfloat16"))
    ),
    # E2, both sides: two comparisons and their difference, two fused multiply-adds.
    *(
        Budget(
            f"score_backward {name}",
            cuda("score_backward", f"sign_sums_kernel<{kind}, true>", 40960),
            _all(5.7),
            per_element=2,
            elements=(512,),
        )
        for name, kind in (("fp32", "float"), ("fp16", "__half"), ("bf16", "__nv_bfloat16"))
    ),
)
