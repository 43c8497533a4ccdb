"""Checkpoints of compacted models: safetensors with the models' own keys, the original configuration and the plan.

The file holds the compacted tensors as they are; its metadata holds what builds the model for them: the configuration
of the original, and the plan that makes the compacted one of it (`structure.plan`). Both are read as data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastalter.artifacts import atomic_path
from fastalter.checkpoint.config_text import CONFIG_KEY, PLAN_KEY, config_to_text
from fastalter.checkpoint.layouts import Entry, Layout
from fastalter.errors import CheckpointError, MaskError
from fastalter.models.config import BEVFusionConfig

if TYPE_CHECKING:
    from fastalter.structure.compaction.plan import CompactionPlan

SPARSE = "spconv2"
"""Sparse weights keep the models' own layout: a folded norm tells nothing of theirs any more."""


def save_compacted(path: str | os.PathLike[str], model: nn.Module, plan: CompactionPlan) -> None:
    """Write a compacted in-tree model, whole or not at all; `load_checkpoint` gives it back.

    Args:
        plan: the one that made it.

    Raises:
        CheckpointError: the model has no configuration, or the place cannot be written.
    """
    from safetensors.torch import save_file

    config = getattr(model, "config", None)
    if not isinstance(config, BEVFusionConfig):
        raise CheckpointError(
            f"{path}: a {type(model).__name__} has no configuration: save its state_dict() yourself, and plan.save()"
        )
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {CONFIG_KEY: config_to_text(config), PLAN_KEY: json.dumps(plan.to_json())}
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); free the place or name another") from error


def plan_in(metadata: Mapping[str, str]) -> CompactionPlan | None:
    """The plan of a file's metadata; None where it is no compacted checkpoint. Raises CheckpointError."""
    text = metadata.get(PLAN_KEY)
    if text is None:
        return None
    from fastalter.structure.compaction.plan_file import plan_from_text

    try:
        return plan_from_text(text, "its plan")
    except MaskError as error:
        raise CheckpointError(str(error)) from error


def plain_layout(state: Mapping[str, Tensor]) -> Layout:
    """The models' own keys and layout."""
    return Layout("mit", SPARSE, tuple(Entry(key, key) for key in state))


def compacted_state(plan: CompactionPlan, model: nn.Module) -> Mapping[str, Tensor]:
    """The state dict that a compacted model has, without memory; `model` is an original on the meta device.

    Raises:
        ModelError: the plan is not one for this model.
    """
    with torch.device("meta"):
        return plan.apply(model).state_dict()
