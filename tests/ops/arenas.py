"""Arenas made to hurt: ties, zeros of both signs, denormals, infinities, and sizes around every block and word."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.tolerances import SMALLEST

# Around the words (32, 64), the parts (512) and the blocks (4096) of the kernels.
EDGES = (0, 1, 2, 31, 32, 33, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 3 * 4096 + 17)
KINDS = ("normal", "ties", "equal", "zeros", "signs", "denormal", "infinite", "wide")

sizes = st.one_of(st.sampled_from(EDGES), st.integers(1, 9000))
dtypes = st.sampled_from([torch.float32, torch.float64])
all_dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
low_dtypes = st.sampled_from([torch.float16, torch.bfloat16])
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**32 - 1)


def make(kind: str, size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """An arena of one kind of trouble; the same for the same arguments."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal(size)
    of_kind = {
        "normal": lambda: normal,
        "ties": lambda: random.integers(-3, 4, size) / 4,
        "equal": lambda: np.full(size, normal[0] if size else 0.0),
        "zeros": lambda: np.where(random.random(size) < 0.9, 0.0, normal),
        "signs": lambda: random.choice([-0.0, 0.0, 1.0, -1.0], size),
        "denormal": lambda: random.integers(-5, 6, size) * SMALLEST[dtype],
        "infinite": lambda: random.choice([-np.inf, np.inf, 0.0, -0.0, 1.5, np.finfo(np.float32).max], size),
        "wide": lambda: normal * 10.0 ** random.integers(-37, 38, size),
    }
    return torch.from_numpy(of_kind[kind]()).to(dtype)


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns, for comparisons that know -0 from +0."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def gradients(size: int, stages: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """grad, start and end arenas of ordinary numbers."""
    grad, *ends = (make("normal", size, dtype, seed + 1 + k) for k in range(1 + 2 * stages))
    return grad, ends[:stages], ends[stages:]
