"""Structured pruning: which channels go together, what is left of a network without them, and 2:4 sparsity."""
