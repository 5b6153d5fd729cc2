"""The tuning table: the tile size of each kernel.

No row was measured on a GPU. Of the tiles that were tried, each row has the one with the fewest instructions per
element and no register spills with any Triton from 3.6 on. tests/test_sass.py counts the instructions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .tile import MIN_TILE

#: The axis of a problem -> the constant that holds the size of a tile on it.
AXES = {"rows": "BN", "columns": "BM", "dim": "BD"}


class Case(NamedTuple):
    """The key of a row of the table; None matches any value."""

    kernel: str
    acc: torch.dtype | None = None
    arch: int | None = None  # 80, 90 or 100; None on AMD


class Tile(NamedTuple):
    sizes: dict[str, int]
    num_warps: int
    num_stages: int = 1


_DOUBLE = torch.float64
TABLE = {
    # 64 pairs per thread: for each dimension a thread loads 16 values for 64 pairs.
    Case("score"): Tile(dict(BN=128, BM=128, UNROLL=4), 8),
    Case("score", _DOUBLE): Tile(dict(BN=64, BM=128, UNROLL=4), 8),
    Case("score_max"): Tile(
        dict(BN=8, BM=64, BK=64), 1, 2
    ),  # with fewer than 4 warps, Triton uses mma instead of wgmma, which waits more
    Case("score_max", arch=80): Tile(dict(BN=8, BM=32, BK=64), 1, 2),
    Case("center"): Tile(dict(BM=16, BD=64), 4),
    Case("row_sums"): Tile(dict(BN=64, BD=128, UNROLL=2), 8),
    Case("row_sums", _DOUBLE): Tile(dict(BN=32, BD=64, UNROLL=2), 4),
    Case("weight"): Tile(dict(BN=32, BM=128), 4),
    # 32 pairs per thread, because these kernels need registers for more than the scores.
    Case("topk"): Tile(dict(BN=64, BM=128, UNROLL=2), 8),
    Case("topk", _DOUBLE): Tile(dict(BN=64, BM=64, UNROLL=4), 8),
    Case("hinge"): Tile(dict(BN=64, BM=128, UNROLL=4), 8),
    Case("hinge", _DOUBLE): Tile(dict(BN=64, BM=64, UNROLL=4), 8),
    Case("logsumexp"): Tile(dict(BN=64, BM=128, UNROLL=4), 8),
    Case("logsumexp", _DOUBLE): Tile(dict(BN=64, BM=64, UNROLL=4), 8),
    Case("logsumexp_nan_rows"): Tile(dict(BN=16, BM=128), 4),
    Case("rank"): Tile(dict(BN=64, BM=128, UNROLL=4), 8),
    Case("rank", _DOUBLE): Tile(dict(BN=64, BM=64, UNROLL=4), 8),
    Case("listed_scores"): Tile(dict(BN=128), 4),
    Case("hinge_row_sums"): Tile(dict(BN=64, BD=128, UNROLL=2), 8),
    Case("hinge_row_sums", _DOUBLE): Tile(dict(BN=32, BD=64, UNROLL=2), 8),
    Case("hinge_sparse_row_sums"): Tile(dict(BD=512), 1),
    Case("hinge_sparse_row_sums", _DOUBLE): Tile(dict(BD=256), 1),
    Case("hinge_pair_sums"): Tile(dict(BN=16, BM=128), 4),
}


def row_of(kernel: str, acc: torch.dtype, arch: int | None) -> Tile:
    """The most specific row of the table. A row for the architecture precedes one for the dtype."""
    cases = (Case(kernel, t, a) for a in (arch, None) for t in (acc, None))
    return next(TABLE[case] for case in cases if case in TABLE)


def tile_for(kernel: str, acc: torch.dtype, arch: int | None, problem: dict[str, int]) -> Tile:
    """The tile of a kernel. A small problem gets a smaller tile and fewer warps, with the same work per thread."""
    tile = row_of(kernel, acc, arch)
    sizes, warps = dict(tile.sizes), tile.num_warps
    for axis, size in AXES.items():
        while warps > 1 and size in sizes and sizes[size] >= 2 * max(MIN_TILE, problem[axis]):
            sizes[size] //= 2
            warps //= 2
    return Tile(sizes, warps, tile.num_stages)
