"""Which tile a kernel runs with: a small table.

No row was measured on a GPU. Each is that of the tiles tried which has the fewest instructions for an element, and no
spills with any Triton from 3.6 on; tests/test_sass.py counts them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .tile import SMALLEST_TILE

#: Which axis of a problem a tile's sizes cut.
AXES = {"rows": "BN", "columns": "BM", "dim": "BD"}


class Case(NamedTuple):
    """What a row of the table is for; None is any."""

    kernel: str
    wide: torch.dtype | None = None
    arch: int | None = None  # 80, 90 or 100; of AMD none


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
    Case("row_sums"): Tile(dict(BN=64, BD=128, UNROLL=2), 8),
    Case("row_sums", _DOUBLE): Tile(dict(BN=32, BD=64, UNROLL=2), 4),
    Case("weight"): Tile(dict(BN=32, BM=128), 4),
    # 32 pairs a thread, for what is kept beside them.
    Case("topk"): Tile(dict(BN=64, BM=128, UNROLL=2), 8),
    Case("topk", _DOUBLE): Tile(dict(BN=64, BM=64, UNROLL=4), 8),
    Case("hinge"): Tile(dict(BN=64, BM=128, UNROLL=4), 8),
    Case("hinge", _DOUBLE): Tile(dict(BN=64, BM=64, UNROLL=4), 8),
    Case("hinge_row_sums"): Tile(dict(BN=64, BD=128, UNROLL=2), 8),
    Case("hinge_row_sums", _DOUBLE): Tile(dict(BN=32, BD=64, UNROLL=2), 8),
    Case("hinge_few_row_sums"): Tile(dict(BD=512), 1),
    Case("hinge_few_row_sums", _DOUBLE): Tile(dict(BD=256), 1),
    Case("hinge_pair_sums"): Tile(dict(BN=16, BM=128), 4),
}


def row_of(kernel: str, wide: torch.dtype, arch: int | None) -> Tile:
    """The most particular row of the table: one for the architecture before one for the type."""
    cases = (Case(kernel, t, a) for a in (arch, None) for t in (wide, None))
    return next(TABLE[case] for case in cases if case in TABLE)


def tile_for(kernel: str, wide: torch.dtype, arch: int | None, problem: dict[str, int]) -> Tile:
    """The row for a kernel, cut to a small problem with as many elements a thread."""
    tile = row_of(kernel, wide, arch)
    sizes, warps = dict(tile.sizes), tile.num_warps
    for axis, size in AXES.items():
        while warps > 1 and size in sizes and sizes[size] >= 2 * max(SMALLEST_TILE, problem[axis]):
            sizes[size] //= 2
            warps //= 2
    return Tile(sizes, warps, tile.num_stages)
