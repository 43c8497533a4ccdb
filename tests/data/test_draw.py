"""The drawing shows boxes where the batch has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from fastalter.data import example_batch
from fastalter.data.draw import COLOURS, box_corners, draw_sample
from fastalter.models.config import BEVFusionConfig

CONFIG = BEVFusionConfig().with_image_size(64, 176)


def test_corners_of_a_turned_box() -> None:
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 6.0, torch.pi / 2, 0.0, 0.0]], dtype=torch.float64)
    corners = box_corners(box)[0]
    torch.testing.assert_close(corners[0], torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64))  # front left below
    torch.testing.assert_close(corners[6], torch.tensor([2.0, 0.0, 6.0], dtype=torch.float64))  # rear right above
    assert corners.mean(0).tolist() == [1.0, 2.0, 3.0]


def test_a_box_is_outlined_from_above_and_in_the_camera_that_sees_it(tmp_path: Path) -> None:
    batch = example_batch(CONFIG, batch_size=1)
    batch.images.zero_()
    batch.boxes[0] = torch.tensor([[0.0, 10.0, -1.0, 4.0, 2.0, 1.6, torch.pi / 2, 0.0, 0.0]])  # ahead
    batch.labels[0] = torch.tensor([8])
    draw_sample(batch, tmp_path / "sheet.png", reach=20.0, scale=4)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 64 + 160, 3 * 176, 3)
    rows, columns = np.nonzero((sheet == ImageColor.getrgb(COLOURS[8])).all(-1))
    seen_by = {(int(c) // 176, int(r) // 64) for r, c in zip(rows, columns, strict=True) if r < 128}
    assert seen_by == {(0, 0)}
    above = columns[rows >= 128], rows[rows >= 128] - 128
    assert (above[0].min(), above[0].max()) == pytest.approx((76, 84), abs=1)
    assert (above[1].min(), above[1].max()) == pytest.approx((32, 48), abs=1)
