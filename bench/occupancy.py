"""Occupancy: how many warps of a kernel an SM holds at a time, and which resource limits them.

From NVIDIA's table of technical specifications per compute capability (CUDA C++ Programming Guide).
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Limits:
    """The resources of one SM.

    A warp gets registers in steps of `register_step`, from the quarter of the SM that runs it.
    """

    warps: int = 64
    quarters: int = 4
    blocks: int = 32
    registers: int = 64 * 1024
    register_step: int = 256
    shared: int = 228 * 1024
    shared_step: int = 128
    system_shared: int = 1024  # reserved by the driver in each block
    block_shared: int = 227 * 1024


#: Architecture -> limits. A new architecture is one row.
LIMITS = {80: Limits(shared=164 * 1024, block_shared=163 * 1024), 90: Limits(), 100: Limits()}


@dataclass(frozen=True)
class Occupancy:
    blocks: int
    warps: int
    fraction: float  # of the warps an SM can hold
    limiter: str


def occupancy(arch: int, threads: int, registers: int, shared: int) -> Occupancy:
    """threads and bytes of shared memory of a block, registers of a thread."""
    limits, warps = LIMITS[arch], _round_up(threads, WARP) // WARP
    per_warp = _round_up(max(1, registers) * WARP, limits.register_step)
    allocated = _round_up(shared + limits.system_shared, limits.shared_step)
    max_blocks = {
        "registers": limits.registers // limits.quarters // per_warp * limits.quarters // warps,
        "shared memory": limits.shared // allocated if shared <= limits.block_shared else 0,
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
    }
    limiter = min(max_blocks, key=lambda name: max_blocks[name])
    blocks = max_blocks[limiter]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, limiter)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
