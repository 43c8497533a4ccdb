"""Reads facts off NVIDIA machine code, as cuobjdump lists it; the triton wheel brings the tool."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)", re.MULTILINE
)
# Warp, warp-group and Blackwell's fifth-generation matrix instructions: half, float64, integer, each as SASS names it.
MATRIX = re.compile(r"^(?:HMMA|DMMA|IMMA|QMMA|OMMA|HGMMA|QGMMA|IGMMA|UTC[A-Z]*MMA)\b")


def run(*command: object, timeout: float = 300) -> str:
    """What the command printed; a failure fails with all it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures(sass: str, usage: str) -> dict[str, Any]:
    """JSON-able facts about one kernel from its listings (-sass and -res-usage).

    registers and stack (bytes) a thread; spills (LDL and STL instructions); code (bytes); and, instruction -> how many
    are in the code: loads and stores of global memory (asynchronous copies to shared memory are loads), tma (bulk
    copies), generic (accesses that find out at run time which memory they are for), matrix (tensor cores).
    """
    counts = Counter(INSTRUCTION.findall(sass))
    assert counts, "cuobjdump listed no instruction"

    def of(*roots: str) -> dict[str, int]:
        return {name: count for name, count in sorted(counts.items()) if name.split(".")[0] in roots}

    return {
        "registers": used("REG", usage),
        "stack": used("STACK", usage),
        "spills": sum(of("LDL", "STL").values()),
        "code": 16 * sum(counts.values()),
        "loads": of("LDG", "LDGSTS"),
        "stores": of("STG"),
        "tma": of("UTMALDG", "UTMASTG", "UBLKCP"),
        "generic": of("LD", "ST"),
        "matrix": {name: count for name, count in sorted(counts.items()) if MATRIX.match(name)},
    }


def used(what: str, usage: str) -> int:
    """How much of a resource (REG, STACK, SHARED) the one kernel of this listing takes."""
    found = re.findall(rf"\b{what}:(\d+)", usage)
    assert len(found) == 1, f"{what} is there {len(found)} times"
    return int(found[0])


def width(instruction: str) -> int:
    """Bits that one thread moves with this global load or store."""
    for part in instruction.split(".")[1:]:
        if part in ("64", "128", "256"):
            return int(part)
        if part in ("U8", "S8", "U16", "S16"):
            return int(part[1:])
    return 32
