"""Masks: exact-k selection over an arena, the bit-packed result, a model under a mask, a model pruned for good."""

from fastalter.masks.context import masked
from fastalter.masks.mask import Mask, emptied
from fastalter.masks.prune import Pruned, prune_model
from fastalter.masks.select import keep_count, select

__all__ = ["Mask", "Pruned", "emptied", "keep_count", "masked", "prune_model", "select"]
