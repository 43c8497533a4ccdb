"""Structured pruning: which channels go together, what is left of a network without them, and 2:4 sparsity."""

from fastalter.structure.find import find_groups
from fastalter.structure.groups import FIXED, Axis, ChannelGroups, Count, Gate, Kept

__all__ = ["FIXED", "Axis", "ChannelGroups", "Count", "Gate", "Kept", "find_groups"]
