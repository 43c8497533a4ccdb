"""Fusion networks, built by name or from a configuration. They know nothing of scoring or pruning."""

from fastalter.models.config import BEVFusionConfig
from fastalter.models.registry import build, config_of, list_models
from fastalter.models.registry import list_models as list

__all__ = ["BEVFusionConfig", "build", "config_of", "list", "list_models"]
