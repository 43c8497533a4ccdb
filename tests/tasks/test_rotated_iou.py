"""Rotated overlap against shapely, on random and on awkward boxes."""

from __future__ import annotations

import math

import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity
from torch.utils._python_dispatch import TorchDispatchMode

from fastalter.tasks.detection.rotated_iou import bev_overlap, iou_3d

NICE_ANGLES = [0.0, math.pi / 2, -math.pi / 2, math.pi, math.pi / 4, 1e-9, math.pi / 2 - 1e-12]


def polygon(box):
    x, y, _, length, width, _, yaw = box[:7]
    rectangle = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(rectangle, yaw, origin=(0, 0), use_radians=True), x, y)


coordinate = st.one_of(st.floats(-6, 6), st.integers(-6, 6).map(float))
size = st.one_of(st.floats(0.01, 12), st.integers(1, 8).map(float))
yaw = st.one_of(st.floats(-7, 7), st.sampled_from(NICE_ANGLES))
box = st.tuples(coordinate, coordinate, coordinate, size, size, size, yaw)


@settings(max_examples=400, deadline=None)
@given(a=box, b=box)
def test_overlap_is_shapelys(a, b):
    expected = polygon(a).intersection(polygon(b)).area
    area = bev_overlap(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)).item()
    assert area == pytest.approx(expected, abs=1e-8 * (1 + b[3] * b[4]))


@settings(max_examples=100, deadline=None)
@given(a=box, shift=st.floats(-1e-9, 1e-9), turn=st.sampled_from([0.0, math.pi, -math.pi, 2 * math.pi]))
def test_nearly_equal_boxes_overlap_fully(a, shift, turn):
    first = torch.tensor([a], dtype=torch.float64)
    second = first.clone()
    second[0, 0] += shift
    second[0, 6] += turn
    assert iou_3d(first, second).item() == pytest.approx(1, abs=1e-5)
    assert iou_3d(first, first).item() == pytest.approx(1, abs=1e-12)


def test_many_boxes_at_once():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(40, 9, generator=generator) * 8 + 0.1, torch.rand(30, 9, generator=generator) * 8 + 0.1
    area = bev_overlap(a, b)
    assert area.shape == (40, 30)
    assert area.dtype == torch.float64
    for i in range(40):
        for j in range(30):
            assert area[i, j].item() == pytest.approx(
                polygon(a[i].tolist()).intersection(polygon(b[j].tolist())).area, abs=1e-6
            )


def test_volumes():
    a = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0]])
    b = torch.tensor(
        [[1.0, 0, 1, 4, 2, 2, 0], [0, 0, 2, 4, 2, 2, 0], [0, 0, 5, 4, 2, 2, 0], [0, 0, 0, 4, 2, 1, math.pi]]
    )
    assert torch.allclose(iou_3d(a, b), torch.tensor([[6 / 26, 0, 0, 0.5]], dtype=torch.float64))
    assert torch.allclose(iou_3d(b, a), iou_3d(a, b).T)


def test_no_boxes_and_unbounded_boxes():
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0]])
    assert iou_3d(boxes[:0], boxes).shape == (0, 1)
    assert iou_3d(boxes, boxes[:0]).shape == (1, 0)
    endless = boxes.clone()
    endless[0, 3] = torch.inf
    assert iou_3d(endless, boxes).item() == 0


class CountOps(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_work_is_vectorised_over_pairs():
    """As many tensor operations for 200 proposals and 50 boxes as for a few of each."""
    counts = []
    for proposals, boxes in ((3, 2), (200, 50)):
        with CountOps() as mode:
            assert (iou_3d(torch.rand(proposals, 7) + 2, torch.rand(boxes, 7) + 2) > 0).all()
        counts.append(mode.count)
    assert counts[0] == counts[1]
