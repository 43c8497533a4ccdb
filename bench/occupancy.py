"""What an architecture's multiprocessor holds, and the model that turns static facts into a share of its roofline.

Limits are those of NVIDIA's table of compute capabilities; rates are data-sheet numbers of the named card. Nothing here
was measured: a share is what the facts would allow, not what a kernel reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

LATENCY = 700e-9  # seconds from a load to its data under load; published microbenchmarks lie between 500 and 800 ns
REGISTER_UNIT = 256  # registers are handed out to a warp in such units
RESERVED_SHARED = 1024  # bytes of shared memory that the system takes for every block


@dataclass(frozen=True)
class Multiprocessor:
    """One SM of an architecture, and the card that its rates are taken from.

    threads, blocks, registers, shared (bytes)   what it holds at most
    processors, bandwidth (bytes a second), matrix (bf16 multiply-adds count two, a second)   of the card
    """

    card: str
    threads: int
    blocks: int
    shared: int
    processors: int
    bandwidth: float
    matrix: float
    registers: int = 65536


SM = {
    80: Multiprocessor("A100 80 GB", 2048, 32, 167936, 108, 2.04e12, 312e12),
    86: Multiprocessor("RTX 3090", 1536, 16, 102400, 82, 0.936e12, 71e12),
    89: Multiprocessor("L40S", 1536, 24, 102400, 142, 0.864e12, 362e12),
    90: Multiprocessor("H100 SXM", 2048, 32, 233472, 132, 3.35e12, 989e12),
    100: Multiprocessor("B200", 2048, 32, 233472, 148, 8.0e12, 2250e12),
    120: Multiprocessor("RTX 5090", 1536, 24, 102400, 170, 1.79e12, 210e12),
}


def resident_blocks(arch: int, threads: int, registers: int, shared: int) -> int:
    """How many blocks of this many threads, with these registers a thread and bytes of shared memory, an SM holds."""
    sm, warps = SM[arch], -(-threads // 32)
    of_warp = -(-32 * registers // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = sm.registers // of_warp // warps
    by_shared = sm.shared // (shared + RESERVED_SHARED)
    return min(sm.blocks, sm.threads // threads, by_registers, by_shared)


def memory_share(arch: int, in_flight: float, moved: float) -> float:
    """Share of peak bandwidth that counts for the algorithm: Little's law, then minimum over moved bytes.

    in_flight: bytes requested at once on an SM. moved: bytes moved over the minimum, 1 at best.
    """
    sm = SM[arch]
    wanted = sm.bandwidth / sm.processors * LATENCY
    return min(1.0, in_flight / wanted) / moved
