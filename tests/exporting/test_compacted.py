"""Compacted networks as ONNX: the files compute what the smaller network does, under the same names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from fastalter.data import example_batch
from fastalter.exporting import check_onnx, onnx_parts, write_onnx
from fastalter.fusion import adapt
from fastalter.models import build, config_of
from fastalter.models.bevfusion import BEVFusion
from fastalter.models.config import SwinConfig
from fastalter.structure.budget import select_channels
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.grouping.find import find_groups


def compacted(name: str) -> tuple[BEVFusion, BEVFusion]:
    """The network with random weights on small images, and what random scores leave of it at half of its FLOPs.

    Of a Swin trunk's blocks only as many as it takes to have shifted windows in one stage: an export takes its time.
    """
    config = config_of(name).with_image_size(32, 88)
    if isinstance(config.camera.backbone, SwinConfig):
        trunk = replace(config.camera.backbone, depths=(1, 1, 2, 1))
        config = replace(config, camera=replace(config.camera, backbone=trunk))
    model = build(config, seed=1).eval()
    groups = find_groups(adapt(model), example_batch(config, batch_size=1, seed=2))
    scores = torch.rand(groups.size, generator=torch.Generator().manual_seed(3))
    return model, compact_model(model, select_channels(scores, groups, 0.5, budget="flops"))


@pytest.mark.parametrize("name", ["bevfusion-tiny", "bevfusion-tiny-resnet"])
def test_every_part_is_smaller_and_right(name: str, tmp_path: Path) -> None:
    model, small = compacted(name)
    for whole, part in zip(onnx_parts(model), onnx_parts(small), strict=True):
        assert (part.file, list(part.inputs), part.outputs) == (whole.file, list(whole.inputs), whole.outputs)
        write_onnx(part, tmp_path / part.file)
        assert max(check_onnx(part, tmp_path / part.file).values()) < 1e-5, part.file
        graph = onnx.load(tmp_path / part.file).graph
        kernels = {node.input[1] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")}
        stored = sum(onnx.numpy_helper.to_array(entry).size for entry in graph.initializer if entry.name in kernels)
        dense = sum(p.numel() for name, p in whole.reference.named_parameters() if p.ndim == 4 and "bias" not in name)
        assert 0 < stored < 0.8 * dense, part.file


def test_the_maps_between_the_files_fit(tmp_path: Path) -> None:
    """What one file gives, the next one takes; the splat keeps the context's channels."""
    _, small = compacted("bevfusion-tiny-resnet")
    parts = {part.file: part for part in onnx_parts(small)}
    camera, smooth = parts["camera.backbone.onnx"], parts["camera.vtransform.onnx"]
    fuser, head = parts["fuser.onnx"], parts["head.bbox.onnx"]
    with torch.no_grad():
        context, _ = camera.reference(*camera.draw(0))
        assert context.shape[-1] == smooth.inputs["feat_in"][1] < 16
        assert smooth.reference(*smooth.draw(0)).shape == fuser.inputs["camera"]
        lidar = small.lidar_map(example_batch(small.config, batch_size=1, seed=2))
        assert lidar.shape == fuser.inputs["lidar"]
        assert fuser.reference(*fuser.draw(0)).shape == head.inputs["middle"]
