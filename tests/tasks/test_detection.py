"""Codes, heatmaps, losses, assignment and decoding, each against an independent statement of it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

from fastalter.data.boxes import from_canonical, wrap_angle
from fastalter.tasks.detection.assigner import assign, focal_cost
from fastalter.tasks.detection.coding import BevGrid, decode_boxes, encode_boxes
from fastalter.tasks.detection.decode import decode_predictions
from fastalter.tasks.detection.losses import gaussian_focal_loss, sigmoid_focal_loss, weighted_l1_loss
from fastalter.tasks.detection.rotated_iou import iou_3d
from fastalter.tasks.detection.targets import build_targets, draw_heatmap, gaussian_radius

GRID = BevGrid.build((-20.0, -24.0, -5.0, 20.0, 24.0, 3.0), (0.25, 0.5, 0.2), (160, 96, 41), 8)
EXTENT = torch.tensor([40.0, 48.0])
CONVENTIONS = ["mit", "mmdet3d"]


def random_boxes(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 9, generator=generator, dtype=torch.float64)
    boxes[:, :2] = (boxes[:, :2] - 0.5) * 36
    boxes[:, 2] = boxes[:, 2] * 3 - 2
    boxes[:, 3:6] = boxes[:, 3:6] * 5 + 0.3
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 2 * math.pi
    return boxes.to(dtype)


def as_predictions(codes, logits, labels, peak=1.0):
    """Head outputs that say exactly `codes` [P, 10] and `logits` [P, C] for one sample."""
    parts = dict(zip(("center", "height", "dim", "rot", "vel"), codes.split([2, 1, 3, 2, 2], 1), strict=True))
    predictions = {name: part.T[None] for name, part in parts.items()}
    one_hot = functional.one_hot(labels, logits.shape[1]).to(codes.dtype)
    return predictions | {
        "heatmap": logits.T[None],
        "query_labels": labels[None],
        "query_heatmap_score": peak * one_hot.T[None],
    }


def test_grid_counts_cells_from_the_corner():
    assert GRID.shape == (20, 12)
    assert GRID.cell == (2.0, 4.0)
    assert GRID.to_cells(torch.tensor([-19.0, -22.0])).tolist() == [0.5, 0.5]
    assert GRID.contains(torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, -24.0], [19.99, 23.99]])).tolist() == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_codes_are_invertible(convention):
    boxes = from_canonical(random_boxes(50), convention)
    codes = encode_boxes(boxes, GRID)
    assert torch.allclose(codes[:, 2], random_boxes(50)[:, 2])
    assert torch.allclose(decode_boxes(codes, GRID), boxes, atol=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_perfect_predictions_decode_to_the_boxes(convention, dtype, tolerance):
    """Predictions built from the targets themselves: all the boxes, their labels, full IoU."""
    boxes = random_boxes(12, dtype=dtype)
    labels = torch.arange(12) % 10
    options = {"grid": GRID, "convention": convention}
    guess = as_predictions(torch.randn(20, 10, dtype=dtype), torch.randn(20, 10, dtype=dtype), torch.zeros(20).long())
    targets = build_targets(guess, [boxes], [labels], min_overlap=0.1, min_radius=2, **options)
    matched = targets.labels[0] < 10
    assert matched.sum() == targets.positives == 12

    classes = targets.labels[0].clamp(max=9)
    logits = torch.where(functional.one_hot(classes, 10).bool() & matched[:, None], 20.0, -20.0).to(dtype)
    perfect = as_predictions(targets.codes[0], logits, classes)
    result = decode_predictions(perfect, post_center_range=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0), **options)[0]
    found = result["scores"] > 0.5
    order = result["boxes"][found][:, 0].argsort()
    expected = boxes[:, 0].argsort()
    difference = result["boxes"][found][order] - boxes[expected]
    difference[:, 6] = wrap_angle(difference[:, 6])
    assert difference.abs().max() < tolerance
    assert torch.equal(result["labels"][found][order], labels[expected])

    again = build_targets(perfect, [boxes], [labels], min_overlap=0.1, min_radius=2, **options)
    assert torch.equal(again.labels, targets.labels)
    assert (again.ious[0, matched] - 1).abs().max() < tolerance
    assert not again.ious[0, ~matched].any()


def test_decoding_drops_what_is_far_or_on_no_peak():
    codes = encode_boxes(from_canonical(random_boxes(3), "mit"), GRID)
    codes[1, 2] = 40
    logits = torch.full((3, 10), -1.0, dtype=torch.float64)
    predictions = as_predictions(codes, logits, torch.tensor([4, 4, 7]), peak=0.5)
    options = {"grid": GRID, "convention": "mit", "post_center_range": (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)}
    result = decode_predictions(predictions, **options)[0]
    assert result["labels"].tolist() == [4, 7]
    assert torch.allclose(result["scores"], torch.sigmoid(torch.tensor(-1.0)).double() * 0.5)
    predictions["query_heatmap_score"][0, :, 0] = 0
    assert decode_predictions(predictions, **options)[0]["labels"].tolist() == [7]


def test_heatmap_peaks():
    boxes = random_boxes(3)
    boxes[:, :2] = torch.tensor([[-19.0, -22.0], [7.0, 2.0], [9.0, 2.0]])
    boxes[:, 3:5] = torch.tensor([4.0, 2.0])
    heatmap = draw_heatmap(boxes, torch.tensor([1, 4, 4]), 10, GRID, 0.1, 2)
    assert (heatmap == 1).nonzero().tolist() == [[1, 0, 0], [4, 13, 6], [4, 14, 6]]
    one_off = math.exp(-1 / (2 * (5 / 6) ** 2))
    assert heatmap[4, 15, 6].item() == pytest.approx(one_off)
    assert heatmap[4, 14, 7].item() == pytest.approx(one_off)
    assert heatmap[1, 1, 1].item() == pytest.approx(one_off**2)
    assert heatmap[1].count_nonzero() == 9  # the corner keeps a quarter of the 5x5 window
    assert heatmap[4].count_nonzero() == 6 * 5  # two windows that overlap
    assert heatmap[[0, 2, 3, 5, 6, 7, 8, 9]].count_nonzero() == 0


def test_heatmap_is_the_same_in_both_precisions():
    """Centres on the border of cells of 0.6 m, where dividing in float32 puts some a cell further."""
    fine = BevGrid((-54.0, -54.0), (54.0, 54.0), (0.6, 0.6), (180, 180))
    boxes, labels = random_boxes(180, dtype=torch.float32), torch.arange(180) % 10
    boxes[:, 0] = boxes[:, 1] = torch.arange(180) * 0.6 - 54
    assert not torch.equal(fine.to_cells(boxes[:, :2]).int(), fine.to_cells(boxes[:, :2].double()).int())
    single = draw_heatmap(boxes, labels, 10, fine, 0.1, 2)
    double = draw_heatmap(boxes.double(), labels, 10, fine, 0.1, 2)
    assert torch.equal(single, double.float())


def test_radius_grows_with_the_box_and_is_symmetric():
    radii = [gaussian_radius(size, size / 2, 0.1) for size in (1.0, 5.0, 20.0)]
    assert radii == sorted(radii)
    assert gaussian_radius(3.0, 7.0, 0.1) == gaussian_radius(7.0, 3.0, 0.1)
    # Two w x h boxes, one shifted by (r, r): IoU = (w-r)(h-r) / (2wh - (w-r)(h-r)), solved for the overlap.
    width, height, overlap = 6.0, 6.0, 0.9
    shift = min(width, height) * (1 - math.sqrt(2 * overlap / (1 + overlap)))
    b, c = width + height, width * height * (1 - overlap) / (1 + overlap)
    assert shift == pytest.approx((b - math.sqrt(b * b - 4 * c)) / 2)


def test_focal_loss_by_hand():
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1]], dtype=torch.float64)
    p = logits.sigmoid()
    expected = -0.25 * (1 - p[0, 1]) ** 2 * p[0, 1].log()
    for negative in (p[0, 0], p[1, 0], p[1, 1]):
        expected -= 0.75 * negative**2 * (1 - negative).log()
    assert torch.allclose(sigmoid_focal_loss(logits, torch.tensor([1, 2]), 4), expected / 4)


def test_heatmap_loss_by_hand():
    logits = torch.tensor([0.3, -1.2, 30.0], dtype=torch.float64)
    heatmap = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    expected = -((1 - p[0]) ** 2) * p[0].log() - 0.4**4 * p[1] ** 2 * (1 - p[1]).log() - p[2] ** 2 * (1 - p[2]).log()
    assert torch.allclose(gaussian_focal_loss(logits, heatmap), expected)
    assert torch.allclose(gaussian_focal_loss(logits.repeat(2), heatmap.repeat(2)), expected)
    no_peak = gaussian_focal_loss(logits[1:2], heatmap[1:2])
    assert torch.allclose(no_peak, -(0.4**4) * p[1] ** 2 * (1 - p[1]).log())


def test_l1_loss_by_hand():
    loss = weighted_l1_loss(
        torch.tensor([1.0, -2.0, 5.0]), torch.tensor([0.0, 2.0, 0.0]), torch.tensor([1.0, 0.5, 0.0]), 2
    )
    assert loss == 1.5


@pytest.mark.parametrize("seed", range(40))
def test_assignment_is_the_cheapest_of_all(seed):
    """Against all ways to match, with proposals and boxes that overlap, so that each cost has a say."""
    proposals, boxes = random_boxes(6, seed), random_boxes(4, seed + 100)
    proposals[:, :2] *= 0.1
    boxes[:, :2] *= 0.1
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([0, 3, 3, 9])
    distance = ((proposals[:, None, :2] - boxes[None, :, :2]).abs() / EXTENT).sum(-1)
    cost = 0.15 * focal_cost(logits.double(), labels) + 0.25 * distance - 0.25 * iou_3d(proposals, boxes)
    table = cost.tolist()
    best = min(itertools.permutations(range(6), 4), key=lambda rows: sum(table[r][c] for c, r in enumerate(rows)))
    match = assign(proposals, logits, boxes, labels, GRID)
    assert dict(zip(match.boxes.tolist(), match.proposals.tolist(), strict=True)) == dict(enumerate(best))
    assert torch.equal(match.ious, iou_3d(proposals, boxes)[match.proposals, match.boxes])


@pytest.mark.parametrize("seed", range(20))
def test_matches_that_cost_the_same_go_to_the_nearer_pairs_whatever_the_rounding(seed):
    """Two proposals on one side of two boxes, far off: in L1 both ways round cost the same, to the last bit or not."""
    random = torch.Generator().manual_seed(seed)
    proposals, boxes = random_boxes(2, 1), random_boxes(2, 2)
    proposals[:, :2] = -10 - 5 * torch.rand(2, 2, generator=random)
    boxes[:, :2] = 10 + 5 * torch.rand(2, 2, generator=random)
    noise = 1 + 1e-14 * torch.randn(2, 2, generator=random, dtype=torch.float64)
    squares = torch.cdist((proposals[:, :2] / EXTENT).double(), (boxes[:, :2] / EXTENT).double()).square()
    straight = bool(squares.trace() < squares.flip(0).trace())
    for moved in (proposals, torch.cat([proposals[:, :2] * noise, proposals[:, 2:]], 1)):
        match = assign(moved, torch.zeros(2, 10), boxes, torch.tensor([3, 3]), GRID)
        assert match.boxes.tolist() == ([0, 1] if straight else [1, 0])


def test_focal_cost_is_the_change_of_the_focal_loss():
    logits = torch.randn(3, 4, dtype=torch.float64)
    cost = focal_cost(logits, torch.tensor([2, 0]))
    for row, column, label in itertools.product(range(3), range(2), (2, 0)):
        if label != (2, 0)[column]:
            continue
        one = logits[row : row + 1]
        change = sigmoid_focal_loss(one, torch.tensor([label]), 1) - sigmoid_focal_loss(one, torch.tensor([4]), 1)
        assert torch.allclose(cost[row, column], change)
