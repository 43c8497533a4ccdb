"""Write a state dict back as the file it came from: its keys and order, its sparse layout, its dtypes, its extras."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.artifacts import atomic_path
from fastalter.checkpoint.config_text import CONFIG_KEY, config_to_text
from fastalter.checkpoint.layouts import GEOMETRY, Layout
from fastalter.checkpoint.payload import PlainCopier, describe_left_out
from fastalter.checkpoint.reader import Archive
from fastalter.checkpoint.sparse import TO_NATIVE, inverse, is_sparse_weight
from fastalter.errors import CheckpointError
from fastalter.models.config import BEVFusionConfig


@dataclass(frozen=True)
class Template:
    """All of a file but its weights: what it takes to write it again.

    Attributes:
        root: the plain entries of the file's object in order, the state dict's place held by None.
        state_key: the state dict's entry in `root`; None where the file is the state dict itself.
        dtypes, shapes: by the file's keys, shapes in the file's sparse layout.
        geometry: the file's own view-transform constants, by the file's keys.
        state_metadata: torch's module versions that hang on a state dict.
        text: the metadata of a safetensors file.
    """

    layout: Layout
    container: str
    root: dict[Any, Any]
    state_key: str | None
    dtypes: dict[str, torch.dtype]
    shapes: dict[str, torch.Size]
    geometry: dict[str, Tensor]
    state_metadata: dict[Any, Any] | None
    text: dict[str, str]


def make_template(archive: Archive, layout: Layout) -> tuple[Template, list[str]]:
    """The template of a file and notes on what of it cannot be written again."""
    copier = PlainCopier(budget=archive.size)
    rest = {key: None if key == archive.state_key else value for key, value in archive.root.items()}
    root = copier.mapping(rest) if archive.state_key is not None else {}
    stored = archive.root[archive.state_key] if archive.state_key is not None else archive.root
    metadata = getattr(stored, "_metadata", None)
    template = Template(
        layout=layout,
        container=archive.container,
        root=root,
        state_key=archive.state_key,
        dtypes={key: value.dtype for key, value in archive.state.items()},
        shapes={key: value.shape for key, value in archive.state.items()},
        geometry={e.file_key: archive.state[e.file_key].clone() for e in layout.entries if e.key in GEOMETRY},
        state_metadata=None if metadata is None else copier.mapping(metadata, "_metadata"),
        text=dict(archive.metadata),
    )
    return template, describe_left_out(copier.left_out)


def write_checkpoint(path: str | os.PathLike[str], template: Template, state: Mapping[str, Tensor]) -> None:
    """Write `state` (the model's keys and sparse layout) to `path`, whole or not at all.

    Raises:
        CheckpointError: `state` has not the tensors of the file, or the place cannot be written.
    """
    _check_keys(path, state, template)
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for entry in template.layout.entries:
        value = template.geometry.get(entry.file_key)
        if value is None:
            value = state[entry.key].detach().cpu()
            value = value.permute(inverse(entry.axes)) if entry.axes else value
        if value.shape != template.shapes[entry.file_key]:
            wanted = list(template.shapes[entry.file_key])
            raise CheckpointError(
                f"{path}: {entry.key} is {list(value.shape)} where the file has {wanted}: give the model's own"
            )
        # A copy each: torch.save would store the whole of a storage that a view belongs to.
        tensors[entry.file_key] = value.to(template.dtypes[entry.file_key]).clone(memory_format=torch.contiguous_format)
    if template.state_metadata is not None:
        tensors._metadata = template.state_metadata  # type: ignore[attr-defined]
    _write(path, template, tensors)


def _check_keys(path: str | os.PathLike[str], state: Mapping[str, Tensor], template: Template) -> None:
    wanted = {entry.key for entry in template.layout.entries}
    missing = sorted(wanted - GEOMETRY - set(state))
    extra = sorted(set(state) - GEOMETRY - wanted)
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the file has no place for"
        count = len(missing) + len(extra)
        raise CheckpointError(f"{path}: the state dict to save {what} ({count} such keys): give the model's own")


def _write(path: str | os.PathLike[str], template: Template, tensors: dict[str, Tensor]) -> None:
    payload: Any = tensors
    if template.state_key is not None:
        payload = type(template.root)(template.root)
        payload[template.state_key] = tensors
    try:
        with atomic_path(path) as temporary:
            if template.container == "safetensors":
                from safetensors.torch import save_file

                save_file(tensors, temporary, metadata=template.text or None)
            else:
                # Given a path, torch would write the temporary file's name into the archive.
                with temporary.open("wb") as file:
                    torch.save(payload, file, _use_new_zipfile_serialization=template.container == "zip")
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: cannot be written ({reason}); free the place or name another") from error


def save_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, *, meta: Mapping[str, Any] | None = None, sparse: str = "spconv1"
) -> None:
    """Write a model of this package as an MIT checkpoint {'state_dict', 'meta'} that also carries its configuration.

    Args:
        meta: plain data to go into the file's `meta` beside the configuration.
        sparse: layout of the sparse weights ("spconv1" as MIT publishes them, "spconv2.1", "spconv2").

    Raises:
        CheckpointError: no configuration on the model, an unknown layout, or the place cannot be written.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, BEVFusionConfig):
        raise CheckpointError(f"{path}: a {type(model).__name__} has no configuration: save its state_dict() yourself")
    if sparse not in TO_NATIVE:
        raise CheckpointError(f"{path}: no sparse layout {sparse!r}: give one of {', '.join(TO_NATIVE)}")
    axes = inverse(TO_NATIVE[sparse])
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in model.state_dict().items():
        moved = value.permute(axes) if is_sparse_weight(key, value) else value
        state[key] = moved.detach().cpu().clone(memory_format=torch.contiguous_format)
    payload = {"state_dict": state, "meta": {**(meta or {}), CONFIG_KEY: config_to_text(config)}}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(payload, file)
