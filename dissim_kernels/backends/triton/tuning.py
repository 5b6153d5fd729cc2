"""Which tile a kernel runs with: a small table, and the candidates that DISSIM_AUTOTUNE=1 measures instead.

No row was measured on a GPU: each is the candidate with the fewest instructions for an element and no spills, which
tests/test_triton.py counts: "predicted, not measured". A measured row names its architecture and dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from .tile import SMALLEST_TILE

#: Which axis of a problem a tile's sizes cut.
AXES = {"rows": "BN", "columns": "BM", "dim": "BD"}


class Case(NamedTuple):
    """What a row of the table is for; None is any."""

    kernel: str
    wide: torch.dtype | None = None
    arch: int | None = None  # 80, 90 or 100; of AMD none
    dim: int | None = None  # D rounded up to a power of 2


class Tile(NamedTuple):
    sizes: dict[str, int]
    num_warps: int
    num_stages: int = 1


_DOUBLE = torch.float64
TABLE = {
    # 64 pairs a thread: for each dimension 16 loaded values serve 64 pairs.
    Case("score"): Tile(dict(BN=128, BM=128, UNROLL=4), 8),
    Case("score", _DOUBLE): Tile(dict(BN=64, BM=128, UNROLL=4), 8),
    Case("score_max"): Tile(dict(BN=8, BM=64, BK=64), 1, 2),  # fewer than 4 warps: mma, not wgmma, which waits more
    Case("score_max", arch=80): Tile(dict(BN=8, BM=32, BK=64), 1, 2),
    Case("centre"): Tile(dict(BM=16, BD=64), 4),
    Case("row_sums"): Tile(dict(BN=64, BD=128, UNROLL=4), 8),
    Case("row_sums", _DOUBLE): Tile(dict(BN=32, BD=64, UNROLL=4), 4),
    Case("weight"): Tile(dict(BN=32, BM=128), 4),
    # 32 pairs a thread, for what is kept beside them.
    Case("topk"): Tile(dict(BN=64, BM=128, UNROLL=4), 8),
    Case("topk", _DOUBLE): Tile(dict(BN=64, BM=64, UNROLL=4), 8),
    Case("hinge"): Tile(dict(BN=64, BM=128, UNROLL=4), 8),
    Case("hinge", _DOUBLE): Tile(dict(BN=64, BM=64, UNROLL=4), 8),
    Case("hinge_row_sums"): Tile(dict(BN=64, BD=128, UNROLL=2), 8),
    Case("hinge_row_sums", _DOUBLE): Tile(dict(BN=32, BD=64, UNROLL=2), 8),
    Case("hinge_few_row_sums"): Tile(dict(BD=512), 1),
    Case("hinge_few_row_sums", _DOUBLE): Tile(dict(BD=256), 1),
    Case("hinge_pair_sums"): Tile(dict(BN=16, BM=128), 4),
}


def row_of(kernel: str, wide: torch.dtype, arch: int | None, dim: int) -> Tile:
    """The most particular row of the table: one for the dimension before one for the architecture or the type."""
    bucket = triton.next_power_of_2(max(1, dim))
    cases = (Case(kernel, t, a, d) for d in (bucket, None) for a in (arch, None) for t in (wide, None))
    return next(TABLE[case] for case in cases if case in TABLE)


def chosen(kernel: str, device: torch.device, wide: torch.dtype, problem: dict[str, int]) -> Tile:
    """The row for a kernel, cut to a small problem with as many elements a thread."""
    nvidia = device.type == "cuda" and torch.version.cuda
    arch = 10 * torch.cuda.get_device_capability(device)[0] if nvidia else None
    tile = row_of(kernel, wide, arch, problem["dim"])
    sizes, warps = dict(tile.sizes), tile.num_warps
    for axis, size in AXES.items():
        while warps > 1 and size in sizes and sizes[size] >= 2 * max(SMALLEST_TILE, problem[axis]):
            sizes[size] //= 2
            warps //= 2
    return Tile(sizes, warps, tile.num_stages)


def candidates(kernel: str) -> list[Tile]:
    """What full tuning tries: every row for the kernel, and each with other warps, unrolling and stages."""
    rows = [tile for case, tile in TABLE.items() if case.kernel == kernel]
    return [
        Tile({**tile.sizes, **({"UNROLL": unroll} if "UNROLL" in tile.sizes else {})}, warps, stages)
        for tile in rows
        for warps in {max(1, tile.num_warps // 2), tile.num_warps}
        for unroll in ((2, 4, 8) if "UNROLL" in tile.sizes else (0,))
        for stages in {tile.num_stages, tile.num_stages + 1}
    ]
