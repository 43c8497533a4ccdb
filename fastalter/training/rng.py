"""The global random generators of Python, NumPy and torch: kept, and seeded step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_rng() -> Iterator[None]:
    """The caller's generators are, after the block, as they were before it."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def seed_step(seed: int, step: int) -> None:
    """Seed every global generator from (seed, step): a step draws the same numbers whatever ran before it."""
    high, low, for_numpy, for_python = (int(word) for word in np.random.SeedSequence((seed, step)).generate_state(4))
    torch.manual_seed(high << 32 | low)
    np.random.seed(for_numpy)
    random.seed(for_python)
