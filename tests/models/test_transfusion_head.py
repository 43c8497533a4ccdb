"""The TransFusion head against the recorded upstream head, and what training and scoring rely on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastalter.data.boxes import to_canonical
from fastalter.errors import DataError, ModelError, ScoringError
from fastalter.models.config import HeadConfig, LidarConfig
from fastalter.models.transformer import Attention
from fastalter.models.transfusion_head import TransFusionHead
from fastalter.tasks.detection.targets import build_targets
from tests.ground_truth import MODES, assert_peak_close, check_module, load_fixture, needs_ground_truth

LIDAR = LidarConfig(voxel_size=(0.675, 0.675, 0.2), sparse_shape=(160, 160, 41))
SMALL = HeadConfig(num_proposals=12, hidden_channels=16, num_heads=4, ffn_channels=32)
HEAD_TOLERANCE = 1e-4
UPSTREAM_LOSSES = {
    "loss.loss_heatmap": "loss_heatmap",
    "loss.layer_-1_loss_cls": "loss_cls",
    "loss.layer_-1_loss_bbox": "loss_bbox",
    "loss.matched_ious": "matched_ious",
}


def recorded_boxes(fixture, dtype=torch.float32):
    tensors = fixture.inputs(dtype)
    boxes = [to_canonical(tensors[f"gt_boxes{i}"], "mit") for i in range(2)]
    return boxes, [tensors[f"gt_labels{i}"].long() for i in range(2)]


def small_head(convention="mit", **changes):
    torch.manual_seed(0)
    return TransFusionHead(8, replace(SMALL, **changes), LIDAR, convention).eval()


def small_batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(2, 5, 9, generator=generator, dtype=torch.float64)
    boxes[..., :2] = boxes[..., :2] * 80 - 40
    boxes[..., 3:6] = boxes[..., 3:6] * 4 + 0.5
    feature = torch.randn(2, 8, 20, 20, generator=generator, dtype=torch.float64)
    return feature.to(dtype), list(boxes.to(dtype)), [torch.arange(5), torch.arange(5) + 5]


def total(losses):
    return sum(value for name, value in losses.items() if "loss" in name)


@needs_ground_truth
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_upstream(mode, dtype):
    fixture = load_fixture("mit_transfusion_head")
    head = TransFusionHead(512, HeadConfig(num_proposals=24, dropout=0.0), LIDAR, "mit")
    boxes, labels = recorded_boxes(fixture, dtype)

    def run(inputs):
        predictions = head(inputs["x"])
        targets = build_targets(
            predictions, boxes, labels, grid=head.grid, convention="mit", min_overlap=0.1, min_radius=2
        )
        losses = head.loss(predictions, boxes, labels)
        outputs = predictions | {name: losses[ours] for name, ours in UPSTREAM_LOSSES.items()}
        return outputs | {
            "target.labels": targets.labels,
            "target.label_weights": torch.ones_like(targets.labels),
            "target.bbox": targets.codes,
            "target.bbox_weights": targets.weights,
            "target.ious": targets.ious,
            "target.heatmap": targets.heatmap,
        }

    losses = [name for name in UPSTREAM_LOSSES if "matched" not in name]
    check_module(
        fixture,
        head,
        run,
        mode=mode,
        dtype=dtype,
        scalar=lambda outputs: sum(outputs[name] for name in losses),
        output_tolerance=HEAD_TOLERANCE,
    )
    recorded = fixture.tensors[f"scalar_{mode}"]
    assert_peak_close(sum(fixture.outputs(mode)[n] for n in losses), recorded, 1e-6, "the recorded scalar is the sum")


@pytest.mark.parametrize("shape", [(2, 7, 16), (1, 1, 16)])
def test_attention_is_torchs(shape):
    torch.manual_seed(0)
    ours = Attention(16, 4, 0.0)
    torch.nn.init.normal_(ours.in_proj_bias)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, memory = torch.randn(shape), torch.randn(shape[0], 9, 16)
    assert torch.allclose(ours(query, memory), theirs(query, memory, memory)[0], atol=1e-6)


def test_dropout_modules_alone_switch_dropout_off():
    head = small_head(dropout=0.5).train()
    feature = small_batch()[0]
    assert not torch.equal(head(feature)["center"], head(feature)["center"])
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    assert torch.equal(head(feature)["center"], head(feature)["center"])


def test_attention_drops_weights():
    attention = Attention(16, 4, 0.5).train()
    query, memory = torch.randn(1, 3, 16), torch.randn(1, 9, 16)
    assert not torch.equal(attention(query, memory), attention(query, memory))
    assert torch.equal(attention.eval()(query, memory), attention(query, memory))


def test_peaks_are_local_maxima_and_the_border_has_none_for_large_classes():
    head = small_head()
    heat = torch.rand(1, 10, 20, 20)
    peaks = head._local_maxima(heat)[0]
    for x, y in peaks[0].nonzero().tolist():
        assert 0 < x < 19
        assert 0 < y < 19
        assert peaks[0, x, y] == heat[0, 0, x - 1 : x + 2, y - 1 : y + 2].max()
    assert torch.equal(peaks[8:], heat[0, 8:])


def test_equal_peaks_are_taken_in_order():
    head = small_head()
    labels, cells = head._top_proposals(torch.zeros(2, 10, 400))
    assert labels.tolist() == [[0] * 12] * 2
    assert cells.tolist() == [list(range(12))] * 2
    peaks = torch.zeros(1, 10, 400)
    peaks[0, 7, 3] = peaks[0, 2, 9] = 0.5
    labels, cells = head._top_proposals(peaks)
    assert labels[0, :3].tolist() == [2, 7, 0]
    assert cells[0, :3].tolist() == [9, 3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reruns_are_bitwise_equal(dtype):
    feature, boxes, labels = small_batch(dtype)
    head = small_head().to(dtype)
    runs = []
    for _ in range(3):
        head.zero_grad()
        losses = head.loss(head(feature), boxes, labels)
        total(losses).backward()
        runs.append([*losses.values(), *(p.grad for p in head.parameters())])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    assert all(value.dtype == dtype for value in runs[0])


@pytest.mark.parametrize("empty", [[0], [0, 1]])
@pytest.mark.parametrize("training", [True, False])
def test_samples_without_boxes(empty, training):
    feature, boxes, labels = small_batch()
    for i in empty:
        boxes[i], labels[i] = torch.empty(0, 9), torch.empty(0, dtype=torch.int64)
    head = small_head().train(training)
    losses = head.loss(head(feature), boxes, labels)
    total(losses).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    assert (losses["loss_bbox"] == 0) == (len(empty) == 2)
    assert not losses["matched_ious"].requires_grad


def test_ignored_boxes_change_nothing():
    feature, boxes, labels = small_batch()
    head = small_head()
    expected = head.loss(head(feature), boxes, labels)
    unlabelled, outside = boxes[0][:1].clone(), boxes[0][:1].clone()
    outside[0, 0] = 54.5
    unlabelled[0, 2] = torch.nan  # not even looked at
    boxes[0] = torch.cat([unlabelled, boxes[0], outside])
    labels[0] = torch.cat([torch.tensor([-1]), labels[0], torch.tensor([3])])
    losses = head.loss(head(feature), boxes, labels)
    assert all(torch.equal(losses[name], value) for name, value in expected.items())


def test_an_unknown_velocity_costs_nothing():
    feature, boxes, labels = small_batch()
    head = small_head()
    predictions = head(feature)
    expected = head.loss(predictions, boxes, labels)
    hidden = [b.clone() for b in boxes]
    hidden[0][:, 7:] = torch.nan
    losses = head.loss(predictions, hidden, labels)
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    assert 0 < losses["loss_bbox"] < expected["loss_bbox"]
    assert torch.equal(losses["loss_heatmap"], expected["loss_heatmap"])

    only_sample_0 = [hidden[0], boxes[1][:0]], [labels[0], labels[1][:0]]
    head.zero_grad()
    head.loss(head(feature), *only_sample_0)["loss_bbox"].backward()
    assert not head.prediction_heads[0].vel[1].weight.grad.any()
    assert head.prediction_heads[0].rot[1].weight.grad.any()


def test_more_boxes_than_proposals():
    feature, boxes, _ = small_batch()
    many = boxes[0].repeat(5, 1) + torch.arange(25)[:, None] * 0.1
    head = small_head()
    losses = head.loss(head(feature), [many, many], [torch.zeros(25).long()] * 2)
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("convention", ["mit", "mmdet3d"])
def test_a_head_learns_boxes_and_decodes_them(convention):
    """Loss, targets and decoding agree: after some steps on one sample its boxes come out."""
    feature, boxes, labels = small_batch()
    feature, boxes, labels = feature[:1], boxes[:1], labels[:1]
    head = small_head(convention, dropout=0.0).train()
    optimiser = torch.optim.Adam(head.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.02, 300)
    for _ in range(300):
        optimiser.zero_grad()
        total(head.loss(head(feature), boxes, labels)).backward()
        optimiser.step()
        schedule.step()
    result = head.decode(head(feature))[0]
    best = result["scores"].argsort(descending=True)[:5]
    assert sorted(result["labels"][best].tolist()) == labels[0].tolist()
    found = result["boxes"][best[result["labels"][best].argsort()]]
    assert (found[:, :6] - boxes[0][:, :6]).abs().max() < 0.2
    assert (torch.remainder(found[:, 6] - boxes[0][:, 6] + 1, 2 * torch.pi) - 1).abs().max() < 0.1


def test_bad_input_is_named():
    feature, boxes, labels = small_batch()
    head = small_head()
    predictions = head(feature)
    with pytest.raises(ModelError, match=r"feature map is 10x20.*20x20"):
        head(feature[:, :, :10])
    with pytest.raises(DataError, match="sample 1: label 11; the head knows classes 0 to 9"):
        head.loss(predictions, boxes, [labels[0], labels[1] + 2])
    with pytest.raises(DataError, match="2 samples, but boxes of 1"):
        head.loss(predictions, boxes[:1], labels[:1])
    with pytest.raises(DataError, match=r"sample 0: boxes of shape \(5, 7\)"):
        head.loss(predictions, [boxes[0][:, :7], boxes[1]], labels)
    flat = boxes[0].clone()
    flat[2, 4] = 0
    with pytest.raises(DataError, match=r"sample 0: box .* has no usable place or size"):
        head.loss(predictions, [flat, boxes[1]], labels)
    predictions["heatmap"] = predictions["heatmap"] * torch.nan
    with pytest.raises(ScoringError, match="NaN or infinite values"):
        head.loss(predictions, boxes, labels)
    with pytest.raises(ModelError, match="code_weights has 9"):
        small_head(code_weights=(1.0,) * 9)
    with pytest.raises(ModelError, match="num_proposals = 4001"):
        small_head(num_proposals=4001)
