"""Masks: exact-k selection over an arena, and the bit-packed result."""

from fastalter.masks.mask import Mask
from fastalter.masks.select import keep_count, select

__all__ = ["Mask", "keep_count", "select"]
