"""Structured pruning: which channels go together, what is left of a network without them, and 2:4 sparsity."""

from fastalter.structure.budget import select_channels
from fastalter.structure.grouping.find import find_groups
from fastalter.structure.groups import FIXED, Axis, ChannelGroups, Count, Gate, Kept
from fastalter.structure.mask import ChannelMask

__all__ = [
    "FIXED",
    "Axis",
    "ChannelGroups",
    "ChannelMask",
    "Count",
    "Gate",
    "Kept",
    "find_groups",
    "select_channels",
]
