"""The in-tree models by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastalter.errors import ModelError
from fastalter.models.config import BEVFusionConfig, resnet101_config, tiny_config, tiny_resnet_config

if TYPE_CHECKING:
    from fastalter.models.bevfusion import BEVFusion

_CONFIGS = {
    config.name: config for config in (BEVFusionConfig(), resnet101_config(), tiny_config(), tiny_resnet_config())
}


def list_models() -> list[str]:
    """Names that `build` and `config_of` take, sorted."""
    return sorted(_CONFIGS)


def config_of(name: str) -> BEVFusionConfig:
    """The configuration of a named model; ModelError, with the names there are, for any other."""
    if name not in _CONFIGS:
        raise ModelError(f"there is no model {name!r}; choose one of {', '.join(list_models())}")
    return _CONFIGS[name]


def build(model: str | BEVFusionConfig, seed: int = 0) -> BEVFusion:
    """A model in train mode with random float32 weights that depend on the seed alone. torch's random state stays as it
    was. Raises ModelError for an unknown name or a configuration that does not fit together.
    """
    from fastalter.models.bevfusion import BEVFusion  # here, so that asking for a configuration does not load spconv

    config = config_of(model) if isinstance(model, str) else model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return BEVFusion(config)
