"""Box conventions against each other and against boxes recorded in two of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from fastalter.data.boxes import BoxConvention, from_canonical, to_canonical, wrap_angle


def test_real_boxes_in_both_conventions(ground_truth: Path) -> None:
    records = json.loads((ground_truth / "data/nuscenes_frame/gt_boxes.json").read_text())["boxes"]
    velocity = torch.zeros(len(records), 2, dtype=torch.float64)
    canonical = torch.tensor([record["centre_lwh_ccw"] for record in records], dtype=torch.float64)
    mit = torch.tensor([record["mit_bottom_wlh_cw"] for record in records], dtype=torch.float64)
    canonical, mit = torch.cat([canonical, velocity], 1), torch.cat([mit, velocity], 1)
    assert len(canonical) == 68
    torch.testing.assert_close(from_canonical(canonical, "mit"), mit, atol=1e-9, rtol=0)
    torch.testing.assert_close(to_canonical(mit, "mit"), canonical, atol=1e-9, rtol=0)


def test_mmdet3d_keeps_everything_but_the_height_of_the_origin() -> None:
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.5, 0.3, 5.0, -6.0]])
    expected = torch.tensor([[1.0, 2.0, 2.25, 4.0, 2.0, 1.5, 0.3, 5.0, -6.0]])
    torch.testing.assert_close(from_canonical(box, "mmdet3d"), expected)


@pytest.mark.parametrize("convention", ["canonical", "mmdet3d", "mit"])
def test_round_trip(convention: BoxConvention) -> None:
    boxes = torch.randn(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    boxes[:, 6] = wrap_angle(3 * boxes[:, 6])
    boxes[3, 7:] = math.nan
    kept = boxes.clone()
    back = to_canonical(from_canonical(boxes, convention), convention)
    torch.testing.assert_close(back, boxes, atol=1e-12, rtol=0, equal_nan=True)
    assert torch.equal(boxes.nan_to_num(9), kept.nan_to_num(9))  # inputs are left alone


def test_wrapped_angles_lie_in_one_turn() -> None:
    angles = torch.tensor([-math.pi, math.pi, 3 * math.pi, 0.5, -7.0], dtype=torch.float64)
    wrapped = wrap_angle(angles)
    assert bool(((wrapped >= -math.pi) & (wrapped < math.pi)).all())
    torch.testing.assert_close(wrapped.cos(), angles.cos())
    torch.testing.assert_close(wrapped.sin(), angles.sin())
