"""From a checkpoint file to a filled model: read, recognise, infer the configuration, compare strictly, copy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastalter.checkpoint.compacted import compacted_state, plain_layout, plan_in
from fastalter.checkpoint.config_text import CONFIG_KEY, config_from_text
from fastalter.checkpoint.infer import infer_config
from fastalter.checkpoint.layouts import GEOMETRY, Layout, read_layout, to_model
from fastalter.checkpoint.names import shown
from fastalter.checkpoint.reader import Archive, read_checkpoint
from fastalter.checkpoint.writer import Template, make_template, write_checkpoint
from fastalter.errors import CheckpointError, ModelError
from fastalter.models.config import BEVFusionConfig

if TYPE_CHECKING:
    from fastalter.models.bevfusion import BEVFusion
    from fastalter.structure.compaction.plan import CompactionPlan

SHOWN_KEYS = 3


@dataclass
class Loaded:
    """A model filled from a file, and how to write it back.

    Attributes:
        layout: family of the file, "mit" or "mmdet3d".
        sparse_layout: "spconv1", "spconv2.1" or "spconv2" (see `checkpoint.sparse`).
        sha256: of the whole file, hexadecimal.
        notes: remarks for the user, one line each.
        plan: of a compacted model: what made it of the one that `config` describes; else None.
    """

    model: BEVFusion
    layout: str
    sparse_layout: str
    config: BEVFusionConfig
    path: Path
    sha256: str
    notes: list[str] = field(default_factory=list)
    template: Template | None = field(default=None, repr=False)
    plan: CompactionPlan | None = field(default=None, repr=False)

    def save(self, path: str | os.PathLike[str], state: Mapping[str, Tensor] | nn.Module | None = None) -> None:
        """Write a state dict (or a model; None: this one) in the layout the file came in.

        Raises:
            CheckpointError: keys that the file does not have, or a place that cannot be written.
        """
        if self.template is None:
            raise CheckpointError(f"{path}: nothing is known of a file to write like: load one with load_checkpoint")
        source = self.model if state is None else state
        write_checkpoint(path, self.template, source.state_dict() if isinstance(source, nn.Module) else source)


def load_checkpoint(
    path: str | os.PathLike[str], *, model: str | None = None, image_size: tuple[int, int] | None = None
) -> Loaded:
    """Read a published BEVFusion checkpoint, or one of this package's own, into an in-tree model on the CPU.

    Nothing in the file is run. The model is in train mode, float32. A compacted checkpoint gives the compacted model.

    Args:
        model: name of a registered model whose configuration is used instead of the one read off the file.
        image_size: (height, width) in pixels, where the model is to take others than it was trained with.

    Raises:
        CheckpointError: one line that starts with the path: unreadable, unsafe, another model, missing or extra keys,
            other shapes, values that are not finite.
        ModelError: `model` is not registered.
    """
    archive = read_checkpoint(path)
    forced = None if model is None else _registered(model)
    try:
        return _load(archive, forced, image_size)
    except (CheckpointError, ModelError) as error:
        raise CheckpointError(f"{archive.path}: {error}") from error


def _registered(name: str) -> BEVFusionConfig:
    from fastalter.models import config_of

    return config_of(name)


def _load(archive: Archive, forced: BEVFusionConfig | None, image_size: tuple[int, int] | None) -> Loaded:
    plan = plan_in(archive.metadata)
    layout = read_layout(archive.state) if plan is None else plain_layout(archive.state)
    state = to_model(archive.state, layout)
    names = {entry.key: entry.file_key for entry in layout.entries}
    config, wanted = _plan(archive, layout, state, forced, image_size, plan)
    compare(wanted, state, names)
    check_finite(state, names)
    network = _build(config)
    if plan is not None:
        plan.apply(network)
    notes = [*archive.notes, *layout.notes, *_fill(network, state), *_dtype_notes(archive)]
    template, left_out = make_template(archive, layout)
    notes += left_out
    return Loaded(network, layout.family, layout.sparse, config, archive.path, archive.sha256, notes, template, plan)


def _plan(
    archive: Archive,
    layout: Layout,
    state: Mapping[str, Tensor],
    forced: BEVFusionConfig | None,
    image_size: tuple[int, int] | None,
    plan: CompactionPlan | None,
) -> tuple[BEVFusionConfig, Mapping[str, Tensor]]:
    """The configuration and its state dict without memory, for a damaged file must not decide what is allocated."""
    try:
        config = _configure(archive, layout, state, forced) if plan is None else _original(archive, forced)
        if image_size is not None:
            config = config.with_image_size(*image_size)
        with torch.device("meta"):
            model = _build(config)
            return config, model.state_dict() if plan is None else compacted_state(plan, model)
    except (CheckpointError, ModelError):
        raise
    except Exception as error:  # sizes that no constructor was written for
        reason = shown(f"{type(error).__name__}: {error}")
        raise CheckpointError(
            f"its shapes make no model ({reason}): give the checkpoint as it was published"
        ) from error


def _configure(
    archive: Archive, layout: Layout, state: Mapping[str, Tensor], forced: BEVFusionConfig | None
) -> BEVFusionConfig:
    from fastalter.models import config_of, list_models

    if forced is not None:
        return replace(forced, box_convention=layout.family)
    text = _carried_text(archive)
    carried = config_from_text(text) if text is not None else None
    return infer_config(state, layout.family, carried, [config_of(name) for name in list_models()])


def _original(archive: Archive, forced: BEVFusionConfig | None) -> BEVFusionConfig:
    """Of a compacted file: the configuration that its plan starts from. Its shapes tell of another."""
    text = _carried_text(archive)
    if text is None:
        raise CheckpointError(
            f"it is compacted and carries no {CONFIG_KEY}: build your own model, apply its CompactionPlan, "
            "then load its state dict"
        )
    config = config_from_text(text)
    return config if forced is None else replace(forced, box_convention=config.box_convention)


def _carried_text(archive: Archive) -> str | None:
    meta = archive.root.get("meta") if archive.state_key is not None else None
    found = archive.metadata.get(CONFIG_KEY) or (meta.get(CONFIG_KEY) if isinstance(meta, dict) else None)
    return found if isinstance(found, str) else None


def _build(config: BEVFusionConfig) -> BEVFusion:
    from fastalter.models import build

    return build(config)


def compare(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Hold a file's tensors against a model's, geometry aside; `names` gives the file's keys for messages.

    Raises:
        CheckpointError: keys missing or left over, other shapes, or numbers of another kind.
    """
    missing = [f"{key} {list(wanted[key].shape)}" for key in wanted if key not in state and key not in GEOMETRY]
    extra = [f"{shown(names[key])} {list(state[key].shape)}" for key in state if key not in wanted]
    if missing or extra:
        parts = [f"lacks {_first(missing)}"] if missing else []
        parts += [f"has {_first(extra)} that the model does not"] if extra else []
        raise CheckpointError(f"{' and '.join(parts)}: give the checkpoint of this model, or name another with --model")
    both = [(names[key], state[key], wanted[key]) for key in wanted if key in state and key not in GEOMETRY]
    shapes = [f"{k} {list(t.shape)} instead of {list(w.shape)}" for k, t, w in both if t.shape != w.shape]
    if shapes:
        raise CheckpointError(f"wrong shapes: {_first(shapes)}: give this model's checkpoint, or name another --model")
    kinds = [f"{k} {t.dtype} instead of {w.dtype}" for k, t, w in both if _kind(t) != _kind(w)]
    if kinds:
        raise CheckpointError(f"wrong types: {_first(kinds)}: give the checkpoint as it was published")


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def check_finite(state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Refuse NaN and infinite weights. Raises CheckpointError naming the first tensors and the counts."""
    broken = []
    for key, tensor in state.items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        nan, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
        broken.append(f"{shown(names[key])} ({nan} NaN, {infinite} Inf of {tensor.numel()})")
    if broken:
        raise CheckpointError(f"weights that are not finite: {_first(broken)}: take an earlier checkpoint")


def _first(items: list[str]) -> str:
    """The first few, and how many there are."""
    more = f", ... ({len(items)} in all)" if len(items) > SHOWN_KEYS else ""
    return ", ".join(items[:SHOWN_KEYS]) + more


@torch.no_grad()
def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Copy into the model's own tensors; spconv's loading hooks, which permute on their own terms, are not asked."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    different = []
    for key in model.state_dict():
        value = state.get(key)
        if key not in GEOMETRY or _same_geometry(value, own[key]):
            own[key].copy_(state[key])
        else:
            different.append(key.rsplit(".", 1)[-1])
    if not different:
        return []
    return [f"view-transform constants ({', '.join(different)}) follow the model's grid and images, not the file's"]


def _same_geometry(value: Tensor | None, own: Tensor) -> bool:
    """Equal up to the rounding of another machine's linspace."""
    if value is None or value.shape != own.shape:
        return False
    return torch.allclose(value.double(), own.double(), rtol=1e-5, atol=1e-5)


def _dtype_notes(archive: Archive) -> list[str]:
    found = {str(t.dtype).removeprefix("torch.") for t in archive.state.values() if t.is_floating_point()}
    other = sorted(found - {"float32"})
    return [f"weights stored as {', '.join(other)} are used as float32"] if other else []
