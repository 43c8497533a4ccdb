"""Masks: exact-k selection over an arena, the bit-packed result, and a model under a mask."""

from fastalter.masks.context import masked
from fastalter.masks.mask import Mask
from fastalter.masks.select import keep_count, select

__all__ = ["Mask", "keep_count", "masked", "select"]
