"""Exported parts: put together again they are the network; what is not the network is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint
from fastalter.data import Batch, load
from fastalter.errors import ExportError
from fastalter.exporting import OnnxPart, check_onnx, onnx_parts, write_onnx
from fastalter.exporting.parts import BoxNetwork, ranked_head
from fastalter.models import build, config_of
from fastalter.models.bevfusion import BEVFusion
from fastalter.models.transfusion_head import TransFusionHead
from fastalter.models.view_transform import depth_image

SHAPES = {
    "camera.backbone.onnx": {
        "img": [1, 6, 3, 64, 176],
        "depth": [1, 6, 1, 64, 176],
        "camera_feature": [6, 8, 22, 16],
        "camera_depth_weights": [6, 34, 8, 22],
    },
    "camera.vtransform.onnx": {"feat_in": [1, 16, 60, 60], "feat_out": [1, 16, 30, 30]},
    "fuser.onnx": {"camera": [1, 16, 30, 30], "lidar": [1, 32, 30, 30], "middle": [1, 64, 30, 30]},
    "head.bbox.onnx": {
        "middle": [1, 64, 30, 30],
        "score": [1, 10, 60],
        "rot": [1, 2, 60],
        "dim": [1, 3, 60],
        "reg": [1, 2, 60],
        "height": [1, 1, 60],
        "vel": [1, 2, 60],
    },
}
"""Names and order of axes are those that CUDA-BEVFusion binds; sizes are the tiny network's, by hand."""


def embedded() -> BEVFusion:
    return load_checkpoint(EMBEDDED).model


def tiny_resnet() -> BEVFusion:
    """Random, its norms' statistics and shifts not at their defaults."""
    model = build("bevfusion-tiny-resnet", seed=3)
    generator = torch.Generator().manual_seed(4)
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        for tensor in (norm.running_var, norm.running_mean, norm.bias):
            tensor.data.copy_(0.2 + torch.rand(tensor.shape, generator=generator))
    return model


class Written:
    """A network, a batch of one, and the network's files in a folder."""

    def __init__(self, make: Callable[[], BEVFusion], folder: Path) -> None:
        self.model, self.folder = make(), folder
        self.before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.random = torch.get_rng_state()
        for part in onnx_parts(self.model):
            write_onnx(part, folder / part.file)
        self.batch: Batch = load("synthetic", config=self.model.config, batches=1, batch_size=1, seed=5)[0]

    def run(self, file: str, *inputs: Tensor) -> list[Tensor]:
        session = onnxruntime.InferenceSession(self.folder / file, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)]


@pytest.fixture(scope="module", params=[embedded, tiny_resnet])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(request.param, tmp_path_factory.mktemp("onnx"))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
def test_the_files_around_the_splat_and_the_lidar_backbone_are_the_network(written: Written) -> None:
    model, batch = written.model, written.batch
    transform = model.encoders["camera"]["vtransform"]
    depth = depth_image(
        batch.points[0], batch.lidar2image[0], batch.image_aug[0], batch.lidar_aug[0], transform.image_size
    )
    context, weights = written.run("camera.backbone.onnx", batch.images, depth[None])
    cells = transform.cells(transform.geometry(batch.camera2lidar, batch.intrinsics, batch.image_aug, batch.lidar_aug))
    splat = transform._splat(weights, context.permute(0, 3, 1, 2), cells[0])
    (camera,) = written.run("camera.vtransform.onnx", splat[None])
    assert close(camera, model.camera_map(batch))
    (middle,) = written.run("fuser.onnx", camera, model.lidar_map(batch))
    found = dict(zip(BoxNetwork.outputs, written.run("head.bbox.onnx", middle), strict=True))

    truth = model(batch)
    for name, key in {"rot": "rot", "dim": "dim", "reg": "center", "height": "height", "vel": "vel"}.items():
        assert close(found[name], truth[key]), name
    labels = truth["query_labels"]
    own = (truth["heatmap"].sigmoid() * truth["query_heatmap_score"]).gather(1, labels[:, None])
    assert close(found["score"], torch.zeros_like(truth["heatmap"]).scatter(1, labels[:, None], own))
    assert len(model.head.decode(truth)[0]["boxes"]) > 5


def test_names_and_shapes_are_those_that_deployment_binds(written: Written) -> None:
    found = {}
    for path in sorted(written.folder.iterdir()):
        graph = onnx.load(path).graph
        found[path.name] = {
            entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim]
            for entry in (*graph.input, *graph.output)
        }
        assert {entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
        assert not {"If", "Loop", "Shape", "NonZero"} & {node.op_type for node in graph.node}
    assert found == SHAPES


def test_the_ranking_is_a_top_k_that_tensorrt_takes(written: Written) -> None:
    graph = onnx.load(written.folder / "head.bbox.onnx").graph
    (ranking,) = [node for node in graph.node if node.op_type == "TopK"]
    sizes = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    assert sizes[ranking.input[1]].tolist() == [60]
    assert "Sort" not in {node.op_type for node in graph.node}


def test_the_network_stays_what_it_was(written: Written) -> None:
    after = written.model.state_dict()
    assert list(after) == list(written.before)
    assert all(torch.equal(after[name], tensor) for name, tensor in written.before.items())
    assert type(written.model.head) is TransFusionHead
    assert torch.equal(torch.get_rng_state(), written.random)


def test_every_file_passes_the_check_well_below_its_tolerance(written: Written) -> None:
    for part in onnx_parts(written.model):
        errors = check_onnx(part, written.folder / part.file)
        assert list(errors) == list(part.outputs)
        assert 0 <= max(errors.values()) < 1e-5, part.file


LAST = {
    "camera.backbone.onnx": "camera.vtransform.depthnet.6.weight",
    "camera.vtransform.onnx": "6.weight",
    "fuser.onnx": "decoder.neck.deblocks.0.0.weight",
    "head.bbox.onnx": "head.prediction_heads.0.vel.1.weight",
}


@pytest.mark.parametrize("file", SHAPES)
def test_a_file_of_other_weights_is_refused(written: Written, file: str) -> None:
    (part,) = [part for part in onnx_parts(written.model) if part.file == file]
    weight = part.reference.get_parameter(LAST[file])
    held = weight.detach().clone()
    with torch.no_grad():
        weight *= 1.01
    try:
        with pytest.raises(ExportError, match=rf"{file}: onnxruntime differs from torch in .* of its maximum"):
            check_onnx(part, written.folder / file)
    finally:
        weight.data.copy_(held)


class Twice(nn.Module):
    """One thing when it is exported, another when it is held against."""

    def __init__(self, factor: float, shift: float = 0.0, channels: int = 4) -> None:
        super().__init__()
        self.factor, self.shift, self.channels = factor, shift, channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels] * self.factor + self.shift


def part_of(exported: nn.Module, reference: nn.Module) -> OnnxPart:
    return OnnxPart("x.onnx", exported.eval(), reference, {"x": (1, 4, 3, 3)}, ("y",))


@pytest.mark.parametrize(
    "other",
    [Twice(1.0 + 3e-4), Twice(1.0, 1e-3), Twice(float("nan")), Twice(float("inf")), Twice(1.0, channels=2)],
)
def test_differences_not_a_number_and_other_shapes_are_refused(other: nn.Module, tmp_path: Path) -> None:
    write_onnx(part_of(Twice(1.0), other), tmp_path / "x.onnx")
    assert check_onnx(part_of(other, Twice(1.0)), tmp_path / "x.onnx")["y"] < 1e-6
    with pytest.raises(ExportError, match=r"x.onnx: onnxruntime differs from torch in y by"):
        check_onnx(part_of(Twice(1.0), other), tmp_path / "x.onnx")


def test_an_output_that_is_zero_everywhere_is_right_if_it_is_zero(tmp_path: Path) -> None:
    write_onnx(part_of(Twice(0.0), Twice(0.0)), tmp_path / "x.onnx")
    assert check_onnx(part_of(Twice(0.0), Twice(0.0)), tmp_path / "x.onnx") == {"y": 0.0}
    with pytest.raises(ExportError, match="differs from torch in y"):
        check_onnx(part_of(Twice(0.0), Twice(0.0, 1e-3)), tmp_path / "x.onnx")


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_module_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"x.onnx: torch cannot export it \("):
        write_onnx(part_of(Unexportable(), Unexportable()), tmp_path / "x.onnx")


def flat_head() -> TransFusionHead:
    """Every cell is as hot as any other of its class, so that the order of equals decides all proposals."""
    head = build("bevfusion-tiny", seed=1).head.eval()
    classifier = head.heatmap_head[1]
    assert isinstance(classifier, nn.Conv2d)
    nn.init.zeros_(classifier.weight)
    return head


@torch.no_grad()
def test_equal_peaks_keep_the_order_of_class_and_cell(tmp_path: Path) -> None:
    head = flat_head()
    part = OnnxPart(
        "head.onnx",
        BoxNetwork(ranked_head(head)).eval(),
        BoxNetwork(head).eval(),
        {"middle": (1, 64, 30, 30)},
        BoxNetwork.outputs,
    )
    write_onnx(part, tmp_path / part.file)
    assert max(check_onnx(part, tmp_path / part.file).values()) < 1e-5
    labels = head(torch.zeros(1, 64, 30, 30))["query_labels"]
    assert labels.unique().tolist() == [0]


def test_drawn_depth_is_sparse_metres_and_the_head_gets_the_clearest_ranking() -> None:
    parts = {part.file: part for part in onnx_parts(build("bevfusion-tiny", seed=1))}
    image, depth = parts["camera.backbone.onnx"].draw(0)
    assert 0.03 < float((depth > 0).float().mean()) < 0.07
    assert 40 < float(depth.max()) < 60
    assert float(image.min()) < -3
    head = parts["head.bbox.onnx"]
    measure: Any = head.clearness
    chosen = measure(*head.draw(0))
    alone = replace(head, clearness=None)
    assert chosen >= measure(*alone.draw(0))
    assert chosen > 0
    assert torch.equal(head.draw(7)[0], head.draw(7)[0])


@pytest.mark.parametrize(
    ("sensor", "files"),
    [
        ("lidar", ["fuser.onnx", "head.bbox.onnx"]),
        ("camera", ["camera.backbone.onnx", "camera.vtransform.onnx", "fuser.onnx", "head.bbox.onnx"]),
    ],
)
def test_a_detector_of_one_sensor_has_its_own_parts(sensor: str, files: list[str], tmp_path: Path) -> None:
    model = build(config_of("bevfusion-tiny").with_sensors(sensor))
    parts = {part.file: part for part in onnx_parts(model)}
    assert list(parts) == files
    fuser = parts["fuser.onnx"]
    assert dict(fuser.inputs) == {sensor: tuple(SHAPES["fuser.onnx"][sensor])}
    write_onnx(fuser, tmp_path / "fuser.onnx")
    assert check_onnx(fuser, tmp_path / "fuser.onnx")["middle"] < 1e-5


def test_a_narrower_network_has_its_own_shapes(tmp_path: Path) -> None:
    """Cut by hand: 3 of 16 context channels, 5 of 16 channels of the camera's map, 7 of the decoder's 64."""
    model = build("bevfusion-tiny", seed=2)
    transform: Any = model.encoders["camera"]["vtransform"]
    transform.depthnet[-1] = nn.Conv2d(32, transform.depth_bins + 13, 1)
    transform.downsample[0] = nn.Conv2d(13, 16, 3, padding=1, bias=False)
    transform.downsample[6], transform.downsample[7] = nn.Conv2d(16, 11, 3, padding=1), nn.BatchNorm2d(11)
    model.fuser[0] = nn.Conv2d(11 + 32, 32, 3, padding=1, bias=False)
    block: Any = model.decoder["neck"].deblocks[0]
    block[0], block[1] = nn.Conv2d(16, 25, 1, bias=False), nn.BatchNorm2d(25)
    model.head.shared_conv = nn.Conv2d(25 + 32, 32, 3, padding=1)
    parts = {part.file: part for part in onnx_parts(model)}
    assert dict(parts["camera.vtransform.onnx"].inputs) == {"feat_in": (1, 13, 60, 60)}
    assert dict(parts["fuser.onnx"].inputs) == {"camera": (1, 11, 30, 30), "lidar": (1, 32, 30, 30)}
    assert dict(parts["head.bbox.onnx"].inputs) == {"middle": (1, 57, 30, 30)}
    for file in ("camera.vtransform.onnx", "fuser.onnx"):
        write_onnx(parts[file], tmp_path / file)
        assert max(check_onnx(parts[file], tmp_path / file).values()) < 1e-5
    context, _ = parts["camera.backbone.onnx"].reference(*parts["camera.backbone.onnx"].draw(0))
    assert context.shape == (6, 8, 22, 13)


def test_parts_by_name() -> None:
    model = build("bevfusion-tiny")

    def files(*names: str) -> list[str]:
        return [part.file for part in onnx_parts(model, names)]

    assert files("fuser", "decoder") == files("decoder") == ["fuser.onnx"]
    assert files("head", "camera") == ["camera.backbone.onnx", "camera.vtransform.onnx", "head.bbox.onnx"]
    with pytest.raises(ExportError, match="no part 'neck': --parts takes camera, fuser, decoder, head"):
        files("neck")
    with pytest.raises(ExportError, match="bevfusion-tiny-lidar has no camera part: it has fuser, decoder, head"):
        onnx_parts(build(config_of("bevfusion-tiny").with_sensors("lidar")), ("camera",))
