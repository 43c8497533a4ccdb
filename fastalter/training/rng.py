"""The global random generators of Python, NumPy and torch: kept, stored, and seeded step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def get_rng() -> dict[str, Any]:
    """The state of every global generator, as tensors and plain containers."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_rng(state: dict[str, Any]) -> None:
    """Put back what `get_rng` returned; CUDA states only where there are as many devices."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_rng() -> Iterator[None]:
    """The caller's generators are, after the block, as they were before it."""
    state = get_rng()
    try:
        yield
    finally:
        set_rng(state)


def seed_step(seed: int, step: int) -> None:
    """Seed every global generator from (seed, step): a step draws the same numbers whatever ran before it."""
    high, low, for_numpy, for_python = (int(word) for word in np.random.SeedSequence((seed, step)).generate_state(4))
    torch.manual_seed(high << 32 | low)
    np.random.seed(for_numpy)
    random.seed(for_python)
