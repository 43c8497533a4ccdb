"""Published families of checkpoints: which one a file is, and its keys in MIT's words, which the models use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fastalter.checkpoint.names import shown
from fastalter.checkpoint.sparse import TO_NATIVE, decide_layout, is_sparse_weight
from fastalter.errors import CheckpointError

Family = Literal["mit", "mmdet3d"]
GEOMETRY = frozenset(f"encoders.camera.vtransform.{name}" for name in ("dx", "bx", "nx", "frustum"))
"""View-transform constants that MIT stores as parameters: they follow from the configuration, not from training."""
USUAL_SPARSE: dict[Family, str] = {"mit": "spconv1", "mmdet3d": "spconv2"}
SUPPORTED = "fastalter reads BEVFusion camera+LiDAR detection with Swin-T or ResNet and voxels, MIT's or mmdet3d's"

_MMDET3D_MODULES = (
    ("img_backbone.", "encoders.camera.backbone."),
    ("img_neck.", "encoders.camera.neck."),
    ("view_transform.", "encoders.camera.vtransform."),
    ("vtransform.", "encoders.camera.vtransform."),  # the older converted files
    ("pts_middle_encoder.", "encoders.lidar.backbone."),
    ("fusion_layer.", "fuser."),
    ("pts_backbone.", "decoder.backbone."),
    ("pts_neck.", "decoder.neck."),
    ("bbox_head.", "heads.object."),
)
_MMDET3D_DECODER_LAYER = (
    ("self_attn.attn.", "self_attn."),
    ("cross_attn.attn.", "multihead_attn."),
    ("ffn.layers.0.0.", "linear1."),
    ("ffn.layers.1.", "linear2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("norms.2.", "norm3."),
)
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its key there, its key in the model, and the axes that bring it into the model's layout."""

    file_key: str
    key: str
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """How a file spells a model. `entries` are in the file's order."""

    family: Family
    sparse: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


def mmdet3d_key(key: str) -> str | None:
    """MIT's key of a key of mmdetection3d's projects/BEVFusion; None where it has no counterpart."""
    for theirs, ours in _MMDET3D_MODULES:
        if key.startswith(theirs):
            return _decoder_layer_key(ours + key.removeprefix(theirs))
    return None


def _decoder_layer_key(key: str) -> str:
    match = re.match(r"heads\.object\.decoder\.\d+\.", key)
    if match:
        rest = key[match.end() :]
        for theirs, ours in _MMDET3D_DECODER_LAYER:
            if rest.startswith(theirs):
                return match[0] + ours + rest.removeprefix(theirs)
    return key


def wrapper_prefix(keys: Iterable[str]) -> str:
    """What training wrappers put before every key ("module."), or nothing."""
    names, prefix = list(keys), ""
    while True:
        found = next((w for w in _WRAPPERS if all(name.startswith(prefix + w) for name in names)), None)
        if found is None:
            return prefix
        prefix += found


def recognise(keys: Iterable[str]) -> Family:
    """The family a state dict's keys (without wrapper prefix) belong to.

    Raises:
        CheckpointError: another model, by its name where it is known.
    """
    names = list(keys)

    def has(*prefixes: str) -> bool:
        return all(any(name.startswith(prefix) for name in names) for prefix in prefixes)

    for what, prefixes in _REFUSED:
        if has(*prefixes):
            raise CheckpointError(f"is {what}, which is not supported yet: {SUPPORTED}")
    if has("encoders.camera.", "encoders.lidar.", "fuser.", "heads.object."):
        return "mit"
    if has("img_backbone.", "pts_middle_encoder.", "fusion_layer.", "bbox_head."):
        return "mmdet3d"
    for what, prefixes in _PARTS:
        if has(*prefixes):
            raise CheckpointError(f"is {what}, not a camera+LiDAR fusion model: {SUPPORTED}")
    first = ", ".join(shown(name, 60) for name in names[:3])
    raise CheckpointError(f"is of an unknown architecture (its keys: {first}, ...; {len(names)} in all): {SUPPORTED}")


# Looked through in order, so what is more telling comes first.
_REFUSED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("BEVFusion-pku", ("lift_splat_shot_vis.",)),
    ("BEVFusion-pku", ("img_backbone.cb_modules.",)),
    ("an OpenPCDet checkpoint", ("backbone_3d.",)),
    ("an OpenPCDet checkpoint", ("dense_head.",)),
    ("BEVFusion-R (camera+radar)", ("encoders.radar.",)),
    ("AVOD", ("bev_vgg_pyr/",)),
    ("BEVFusion-mit for map segmentation", ("heads.map.", "encoders.camera.", "encoders.lidar.")),
    ("BEVFusion-mit with PointPillars", ("encoders.lidar.backbone.pts_voxel_encoder.", "encoders.camera.")),
    ("BEVFusion-mit with a CenterPoint head", ("heads.object.task_heads.", "encoders.camera.", "encoders.lidar.")),
)
_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a camera-only BEVFusion", ("encoders.camera.",)),
    ("a LiDAR-only BEVFusion", ("encoders.lidar.",)),
    ("a LiDAR-only mmdet3d model", ("pts_middle_encoder.",)),
    ("a LiDAR-only mmdet3d model", ("pts_backbone.",)),
    ("a camera-only mmdet3d model", ("img_backbone.",)),
    ("an image backbone", ("backbone.",)),
    ("an image backbone", ("patch_embed.",)),
)


def read_layout(state: Mapping[str, Tensor]) -> Layout:
    """Recognise a file's state dict and pair its keys with the model's.

    Keys without a counterpart are paired with themselves, so that the strict comparison with the model names them.

    Raises:
        CheckpointError: another model, two keys for one weight, or sparse weights in no known layout.
    """
    prefix = wrapper_prefix(state)
    bare = {key: key.removeprefix(prefix) for key in state}
    family = recognise(bare.values())
    keys = {key: (mmdet3d_key(name) or name) if family == "mmdet3d" else name for key, name in bare.items()}
    renamed: dict[str, Tensor] = {}
    for file_key, key in keys.items():
        if key in renamed:
            raise CheckpointError(f"two of its keys stand for {shown(key)}: give the file as it was published")
        renamed[key] = state[file_key]
    sparse, notes = decide_layout(renamed, USUAL_SPARSE[family])
    axes = None if sparse == "spconv2" else TO_NATIVE[sparse]
    entries = (Entry(f, k, axes if is_sparse_weight(k, renamed[k]) else None) for f, k in keys.items())
    return Layout(family, sparse, tuple(entries), tuple(notes))


def to_model(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The file's tensors by the model's keys and in its sparse layout (views, nothing is copied)."""
    return {e.key: state[e.file_key].permute(e.axes) if e.axes else state[e.file_key] for e in layout.entries}
