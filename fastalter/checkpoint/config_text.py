"""BEVFusionConfig as JSON text, the form in which this package's own checkpoints carry it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from fastalter.errors import CheckpointError, ModelError
from fastalter.models.config import BEVFusionConfig, CameraConfig

CONFIG_KEY = "fastalter_config"
"""Where it is: an entry of the checkpoint's `meta`, or of a safetensors file's metadata."""
PLAN_KEY = "fastalter_plan"
"""Beside it in the metadata of a compacted model's file: the plan that made it of the configured one."""


def config_to_text(config: BEVFusionConfig) -> str:
    """The configuration as one line of JSON."""
    return json.dumps(config.to_dict(), sort_keys=True)


def config_from_text(text: str) -> BEVFusionConfig:
    """The inverse of `config_to_text`.

    Raises:
        CheckpointError: not JSON, an entry that this version does not know, or a value of another type.
    """
    try:
        config = BEVFusionConfig.from_dict(json.loads(text))
    except (ValueError, RecursionError, TypeError) as error:
        raise CheckpointError(f"its {CONFIG_KEY} is not one: save the checkpoint again with fastalter") from error
    except ModelError as error:
        raise CheckpointError(f"its {CONFIG_KEY} cannot be read: {error}") from error
    backbone = type(config.camera.backbone)()
    example = replace(BEVFusionConfig(), camera=CameraConfig(backbone=backbone))
    if not _alike(config.to_dict(), example.to_dict()):
        raise CheckpointError(f"its {CONFIG_KEY} holds values of another type: save the checkpoint again")
    return config


def _alike(value: Any, example: Any) -> bool:
    """Whether a value has the types of an example; a tuple's first member stands for all of its members."""
    if isinstance(example, dict):
        return isinstance(value, dict) and all(_alike(item, example[key]) for key, item in value.items())
    if isinstance(example, tuple):
        return isinstance(value, tuple) and all(_alike(item, example[0]) for item in value)
    if isinstance(example, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(example)
