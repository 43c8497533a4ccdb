"""One contender in a process of its own: python -m bench.peers.worker JOB CONTENDER SCORES OUT --rounds N.

The libraries are loaded and the threads started by a run on a small network. The first run at full size is measured for
memory: the resident set's high-water mark, reset just before, less the resident set just before (`resident_growth`; the
kernel keeps the mark, nothing is sampled). It counts the mask that is handed back. The timed rounds follow.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import Tensor

from bench.bulk import seconds
from bench.peers.contenders import CONTENDERS, Task
from bench.peers.jobs import JOBS, RATIO
from fastalter.criteria.scores import Scores
from fastalter.masks import select
from fastalter.profiling.measure import resident_growth


def digest(flags: Tensor) -> str:
    """sha256 of a bool [N], bit-packed."""
    return hashlib.sha256(np.packbits(flags.numpy(), bitorder="little").tobytes()).hexdigest()


def measure(name: str, task: Task, rounds: int) -> dict[str, Any]:
    """Extra memory, what is kept, whether it is what we keep, and the seconds of every round."""
    small = JOBS["small"]
    CONTENDERS[name](Task.of(small, small.scores())).make()
    contender = CONTENDERS[name](task)

    made: list[Any] = []
    extra = resident_growth(lambda: made.append(contender.make()))
    flags = contender.flags(made.pop())
    ranked = task.scores.flat if contender.ranked is None else contender.ranked
    ours = select(ranked, task.scores.layout, task.keep, ratio=RATIO)
    packed = ours.bits[: (flags.numel() + 7) // 8].numpy().tobytes()
    row = {
        "extra_bytes": extra,
        "kept": int(flags.sum()),
        "k": task.keep,
        "sha256": digest(flags),
        "same_as_ours": digest(flags) == hashlib.sha256(packed).hexdigest(),
        "ranks_the_given_scores": contender.ranked is None,
    }
    del flags, ours, ranked
    times = []
    for _ in range(rounds):
        contender.reset()
        times.append(seconds(contender.make))
    return {**row, "seconds": times}


def row_of(job: str, name: str, scores: Scores, rounds: int) -> dict[str, Any]:
    """`measure`, or {"error": one line} if the contender fails."""
    try:
        return measure(name, Task.of(JOBS[job], scores), rounds)
    except Exception as error:  # a peer may fail in any way: that is its result
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def main(job: str, name: str, scores: Path, out: Path, rounds: int = 7) -> None:
    torch.manual_seed(0)
    out.write_text(json.dumps(row_of(job, name, Scores.load(scores), rounds)))


if __name__ == "__main__":
    typer.run(main)
