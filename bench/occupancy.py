"""How many warps of a kernel an SM holds at a time, and what keeps it from holding more.

From NVIDIA's table of technical specifications per compute capability (CUDA C++ Programming Guide).
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Limits:
    """What one SM has to share out. Registers are handed out to a warp in steps of `register_step`, from the quarter
    of the SM that runs it."""

    warps: int = 64
    quarters: int = 4
    blocks: int = 32
    registers: int = 64 * 1024
    register_step: int = 256
    shared: int = 228 * 1024
    shared_step: int = 128
    shared_of_system: int = 1024  # that the driver takes of each block
    shared_of_block: int = 227 * 1024


#: Architecture -> limits. A new architecture is one row.
LIMITS = {80: Limits(shared=164 * 1024, shared_of_block=163 * 1024), 90: Limits(), 100: Limits()}


@dataclass(frozen=True)
class Occupancy:
    blocks: int
    warps: int
    share: float  # of the warps an SM can hold
    limiter: str


def occupancy(arch: int, threads: int, registers: int, shared: int) -> Occupancy:
    """threads and bytes of shared memory of a block, registers of a thread."""
    limits, warps = LIMITS[arch], _up(threads, WARP) // WARP
    per_warp = _up(max(1, registers) * WARP, limits.register_step)
    taken = _up(shared + limits.shared_of_system, limits.shared_step)
    room = {
        "registers": limits.registers // limits.quarters // per_warp * limits.quarters // warps,
        "shared memory": limits.shared // taken if shared <= limits.shared_of_block else 0,
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
    }
    limiter = min(room, key=lambda name: room[name])
    blocks = room[limiter]
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps, limiter)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
