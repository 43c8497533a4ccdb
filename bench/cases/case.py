"""What a benchmark times: one op on one workload, checked against the reference before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Run = Callable[[], object]


@dataclass
class Case:
    """One op on one workload.

    run        the op as a user calls it; this is timed
    bytes      what its algorithm must read and write at the least; 0 for the matrix products, which arithmetic bounds
    check      asserts that the outcome is the reference's
    reference  the op's plain-torch specification on the same arguments
    peers      what a user would call without fastalter, by name; comparable work, not always the same result
    """

    run: Run
    bytes: int
    check: Callable[[], None]
    reference: Run | None = None
    peers: dict[str, Run] = field(default_factory=dict)
