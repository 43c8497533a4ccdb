"""The seam to a network: which modules form a branch, where its feature leaves, and how a branch is masked."""

from fastalter.fusion.adapt import FusionModel, adapt
from fastalter.fusion.weights import Weight, default_prunable, find_weights

__all__ = ["FusionModel", "Weight", "adapt", "default_prunable", "find_weights"]
