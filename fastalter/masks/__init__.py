"""Masks: exact-k and N:M selection, the bit-packed result, a model under a mask, a model pruned for good."""

from fastalter.masks.context import masked
from fastalter.masks.mask import Mask, emptied
from fastalter.masks.n_m import check_n_m, layer_kinds, select_n_m
from fastalter.masks.prune import Pruned, prune_model
from fastalter.masks.select import keep_count, select

__all__ = [
    "Mask",
    "Pruned",
    "check_n_m",
    "emptied",
    "keep_count",
    "layer_kinds",
    "masked",
    "prune_model",
    "select",
    "select_n_m",
]
