"""The drawing shows boxes where the batch has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from fastalter.data import example_batch
from fastalter.data.draw import COLOURS, LEGEND, box_corners, draw_sample
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
    assert sheet.shape == (2 * 64 + 160 + LEGEND, 3 * 176, 3)
    rows, columns = np.nonzero((sheet == ImageColor.getrgb(COLOURS[8])).all(-1))
    seen_by = {(int(c) // 176, int(r) // 64) for r, c in zip(rows, columns, strict=True) if r < 128}
    assert seen_by == {(0, 0)}
    inside = (rows >= 128) & (rows < 128 + 160)
    above = columns[inside] - (3 * 176 - 160) // 2, rows[inside] - 128  # in the middle below the images
    assert (above[0].min(), above[0].max()) == pytest.approx((76, 84), abs=1)
    assert (above[1].min(), above[1].max()) == pytest.approx((32, 48), abs=1)


def test_detections_go_thin_over_pale_ground_truth_from_a_score_on(tmp_path: Path) -> None:
    batch = example_batch(CONFIG, batch_size=1)
    batch.images.zero_()
    batch.points[0] = batch.points[0][:0]
    batch.boxes[0] = torch.tensor([[0.0, 10.0, -1.0, 4.0, 2.0, 1.6, 0.0, 0.0, 0.0]])
    batch.labels[0] = torch.tensor([3])
    found = {
        "boxes": torch.tensor(
            [[0.5, 10.0, -1.0, 4.0, 2.0, 1.6, 0.0, 0.0, 0.0], [8.0, -9.0, -1.0, 4.0, 2.0, 1.6, 0, 0, 0]]
        ),
        "scores": torch.tensor([0.9, 0.2]),
        "labels": torch.tensor([8, 9]),
    }
    draw_sample(batch, tmp_path / "both.png", reach=20.0, scale=4, found=found)
    sheet = np.asarray(Image.open(tmp_path / "both.png"))[: 2 * 64 + 160]

    def pixels(colour: str) -> int:
        return int((sheet == ImageColor.getrgb(colour)).all(-1).sum())

    assert pixels(COLOURS[8]) > 30  # the good detection
    assert pixels(COLOURS[9]) == 0  # below the score
    assert pixels(COLOURS[3]) == 0  # ground truth is pale
    truth = "#" + "".join(f"{int(COLOURS[3][i : i + 2], 16) // 2 + 20:02x}" for i in (1, 3, 5))
    assert pixels(truth) > 60
    nothing = {"boxes": torch.zeros(0, 9), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    draw_sample(batch, tmp_path / "none.png", reach=20.0, scale=4, found=nothing)
    sheet = np.asarray(Image.open(tmp_path / "none.png"))[: 2 * 64 + 160]
    assert pixels(truth) > 60
