"""The assembled model on random batches: losses, gradients, reruns, what it leaves alone, and the modality mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastalter.models
from fastalter.data import Batch, example_batch
from fastalter.models.bevfusion import BEVFusion

TINY = fastalter.models.config_of("bevfusion-tiny")
OUTLETS: dict[str, Callable[[BEVFusion, Batch], Tensor]] = {
    "camera": lambda model, batch: model.camera_map(batch),
    "lidar": lambda model, batch: model.lidar_map(batch),
}


@pytest.fixture(scope="module")
def batch() -> Batch:
    return example_batch(TINY, batch_size=2, seed=5)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for key, value in losses.items() if "loss" in key]).sum()


def loss_and_gradients(model: BEVFusion, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """One pass with the stochastic layers seeded."""
    model.zero_grad()
    torch.manual_seed(11)
    losses = model.loss(batch)
    total(losses).backward()  # type: ignore[no-untyped-call]
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def zero_branch(model: BEVFusion, branch: str) -> None:
    """Mask a branch as the paper does: every learned parameter of it becomes zero."""
    for module in model.branches[branch]:
        for parameter in model.get_submodule(module).parameters():
            if parameter.requires_grad:
                parameter.zero_()


def tensors_of(batch: Batch) -> list[Tensor]:
    matrices = [batch.lidar2image, batch.camera2lidar, batch.intrinsics, batch.image_aug, batch.lidar_aug]
    return [batch.images, *batch.points, *matrices, *batch.boxes, *batch.labels]


def outline(module: nn.Module, depth: int = 0) -> dict[str, tuple[int, str]]:
    """Depth and class of every module, by path."""
    return {name: (name.count("."), type(m).__name__) for name, m in module.named_modules()}


def test_tiny_has_the_module_tree_of_the_full_model_and_a_million_parameters() -> None:
    tiny, full = fastalter.models.build(TINY), fastalter.models.build("bevfusion-mit-swint-voxelnet")
    assert outline(tiny) == outline(full)
    assert list(tiny.state_dict()) == list(full.state_dict())
    assert 0.9e6 < sum(p.numel() for p in tiny.parameters() if p.requires_grad) < 1.25e6


def test_seed_decides_the_weights_and_nothing_else_is_drawn() -> None:
    state = torch.get_rng_state()
    first, again, other = (fastalter.models.build(TINY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fuser.0.weight"], other["fuser.0.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_losses_and_gradients_are_finite_and_bitwise_repeatable(
    batch: Batch, dtype: torch.dtype, training: bool
) -> None:
    data = batch.to(dtype=dtype)
    before = [tensor.clone() for tensor in tensors_of(data)]
    runs = []
    for _ in range(2):
        model = fastalter.models.build(TINY).to(dtype).train(training)
        runs.append(loss_and_gradients(model, data))
    losses, gradients = runs[0]

    assert {"loss_heatmap", "loss_cls", "loss_bbox"} <= set(losses)
    for key, value in losses.items():
        assert (value.ndim, value.dtype) == (0, dtype), key
        assert torch.isfinite(value), key
        assert value.requires_grad == ("loss" in key), key
        assert torch.equal(value, runs[1][0][key]), key
    for name, gradient in gradients.items():
        assert gradient is not None, f"{name} got no gradient"
        assert gradient.dtype == dtype, name
        assert torch.isfinite(gradient).all(), name
        other = runs[1][1][name]
        assert other is not None, name
        assert torch.equal(gradient, other), name
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(data), strict=True)), "an input was changed"


def test_gradients_reach_every_weight_with_more_than_zeros(batch: Batch) -> None:
    """Biases in front of a batch norm have none in exact arithmetic; every matrix and kernel must have some."""
    _, gradients = loss_and_gradients(fastalter.models.build(TINY).double(), batch.to(dtype=torch.float64))
    dead = [name for name, g in gradients.items() if g is not None and g.ndim > 1 and not g.any()]
    assert not dead


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("branch", ["camera", "lidar"])
def test_single_precision_follows_double(batch: Batch, branch: str, training: bool) -> None:
    """The maps agree to rounding, so no voxel, depth pixel or cell depends on the dtype. (Proposals may: their ranking
    breaks near-ties of an untrained heatmap.)"""
    config = replace(TINY, camera=replace(TINY.camera, backbone=replace(TINY.camera.backbone, drop_path_rate=0.0)))
    single, double = fastalter.models.build(config), fastalter.models.build(config).double()
    expected = OUTLETS[branch](double.train(training), batch.to(dtype=torch.float64))
    actual = OUTLETS[branch](single.train(training), batch)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_forward_and_decoding_for_any_batch_size(batch_size: int) -> None:
    model = fastalter.models.build(TINY).eval()
    predictions = model(example_batch(TINY, batch_size=batch_size))
    assert predictions["heatmap"].shape == (batch_size, TINY.head.num_classes, TINY.head.num_proposals)
    decoded = model.head.decode(predictions)
    assert len(decoded) == batch_size
    for sample in decoded:
        count = len(sample["boxes"])
        assert sample["boxes"].shape == (count, 9)
        assert sample["scores"].shape == sample["labels"].shape == (count,)


def test_samples_do_not_mix_in_eval_mode() -> None:
    model = fastalter.models.build(TINY).double().eval()
    pair = example_batch(TINY, batch_size=2).to(dtype=torch.float64)
    matrices = ("lidar2image", "camera2lidar", "intrinsics", "image_aug", "lidar_aug")
    second = replace(
        pair, images=pair.images[1:], points=pair.points[1:], **{name: getattr(pair, name)[1:] for name in matrices}
    )
    for outlet in OUTLETS.values():
        torch.testing.assert_close(outlet(model, second)[0], outlet(model, pair)[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("branch", ["camera", "lidar"])
def test_zeroing_a_branch_makes_its_outlet_exactly_zero(batch: Batch, branch: str, training: bool) -> None:
    """The modality mask: a masked backbone need not be run, because its map is zero."""
    model = fastalter.models.build(TINY).train(training)
    other = "lidar" if branch == "camera" else "camera"
    assert OUTLETS[branch](model, batch).any()
    zero_branch(model, branch)
    assert not OUTLETS[branch](model, batch).any()
    assert OUTLETS[other](model, batch).any()
    assert torch.isfinite(total(model.loss(batch)))


def test_the_fuser_splits_into_one_convolution_per_branch(batch: Batch) -> None:
    """conv(cat[C, L]) = conv_c(C) + conv_l(L), with the input channels in the order of `outlets`."""
    model = fastalter.models.build(TINY).double()
    data = batch.to(dtype=torch.float64)
    maps = [OUTLETS[branch](model, data) for branch in model.outlets]
    conv = model.get_submodule(model.concat_conv)
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is None
    weights = torch.split(conv.weight, [m.shape[1] for m in maps], 1)
    parts = [F.conv2d(m, weight, padding=1) for m, weight in zip(maps, weights, strict=True)]
    whole = conv(torch.cat(maps, 1))
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=0, atol=1e-12 * whole.abs().max().item())


def test_outlets_are_the_last_modules_of_their_branches(batch: Batch) -> None:
    model = fastalter.models.build(TINY).eval()
    seen: dict[str, Tensor] = {}
    for branch, path in model.outlets.items():
        assert path == model.branches[branch][-1]
        model.get_submodule(path).register_forward_hook(lambda _m, _x, out, b=branch: seen.__setitem__(b, out))
    inputs: list[Tensor] = []
    model.get_submodule(model.concat_conv).register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    model(batch)
    assert torch.equal(inputs[0], torch.cat([seen["camera"], seen["lidar"]], 1))


def test_augmentation_is_undone_in_the_view_transform(batch: Batch) -> None:
    """Turning points and `lidar_aug` together leaves the depth images as they are; the map turns with the frame."""
    quarter_turn = torch.eye(4, dtype=torch.float64)
    quarter_turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    data = batch.to(dtype=torch.float64)
    points = [torch.cat([p[:, :3] @ quarter_turn[:3, :3].T, p[:, 3:]], 1) for p in data.points]
    turned = replace(data, points=points, lidar_aug=quarter_turn.expand(2, 4, 4).clone())
    model = fastalter.models.build(TINY).double().eval()
    seen: list[Tensor] = []
    model.get_submodule("encoders.camera.vtransform.dtransform").register_forward_pre_hook(
        lambda _m, args: seen.append(args[0])
    )
    model.get_submodule("encoders.camera.vtransform.downsample").register_forward_pre_hook(
        lambda _m, args: seen.append(args[0])
    )
    model.camera_map(data)
    model.camera_map(turned)
    depth, bev, depth_turned, bev_turned = seen
    assert depth.any()
    assert (depth_turned - depth).abs().gt(1e-4).double().mean() < 1e-3  # a point on a pixel's edge may move
    # x' = -y, y' = x: the cell (i, j) of the map moves to (X - 1 - j, i), up to points on the edges of cells.
    # The outermost cells are left out: the first row also holds what is truncated to it from below.
    moved, bev_turned = (torch.rot90(bev, 1, (2, 3))[..., 1:-1, 1:-1], bev_turned[..., 1:-1, 1:-1])
    different = (bev_turned - moved).abs().amax(1) > 1e-9 * bev.abs().max()
    assert moved.any()
    assert different.double().mean() < 0.02
