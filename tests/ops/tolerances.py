"""How far an op may be from its oracle: every bound of tests/ops, with its reason.

A bound is a number of roundings times the unit roundoff of the dtype that the arithmetic runs in times a scale, which
the test works out from its own numbers: the sum of the magnitudes of what is added up.
"""

from __future__ import annotations

import torch

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of one rounding to nearest (half a unit in the last place)."""

WHOLE = 1e-9
"""A chain of ops in float64 against the same in torch, of the largest entry: a few thousand roundings of 1e-16, times
batch norm's 1/sigma, which the tests keep below 100, with a margin of a hundred."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What the arithmetic runs in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def of_sum(terms: int, dtype: torch.dtype = torch.float64) -> float:
    """n numbers added up in any order, of the sum of their magnitudes: each takes part in at most n - 1 additions."""
    return max(1, terms) * UNIT[dtype]


def of_product_sum(terms: int, dtype: torch.dtype) -> float:
    """n products added up, of the sum of their magnitudes: one rounding more for each product.

    Torch's convolutions may transform their input first (Winograd), which costs a small factor: 4.
    """
    return 4 * (max(1, terms) + 1) * UNIT[wide(dtype)]


def of_store(dtype: torch.dtype) -> float:
    """The last rounding, to the dtype of the result, of the result itself."""
    return UNIT[dtype]


SMALLEST = {torch.float64: 5e-324, torch.float32: 1e-45, torch.float16: 6e-8, torch.bfloat16: 9.2e-41}
"""The smallest positive number, which bounds the error of a rounding among the denormals."""
