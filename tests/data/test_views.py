"""Which frame and view goes where, and that it depends on (seed, index) alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from fastalter.data import Batch, Batches, PrepareOptions, load, open_frames
from fastalter.data.views import draw_view
from fastalter.errors import DataError
from fastalter.models.config import BEVFusionConfig, LidarConfig
from tests.data.tiny_nuscenes import SAMPLES

CONFIG = BEVFusionConfig().with_image_size(32, 64)


def loaded(root: Path, batches: int = 4, batch_size: int = 2, seed: int = 0, kind: str = "nuscenes") -> Batches:
    return load(f"{kind}:{root}", config=CONFIG, batches=batches, batch_size=batch_size, seed=seed)


def same(a: Batch, b: Batch) -> bool:
    return (
        a.tokens == b.tokens
        and torch.equal(a.images, b.images)
        and torch.equal(a.lidar_aug, b.lidar_aug)
        and torch.equal(a.image_aug, b.image_aug)
        and all(torch.equal(p, q) for p, q in zip(a.points, b.points, strict=True))
        and all(torch.equal(p.nan_to_num(9), q.nan_to_num(9)) for p, q in zip(a.boxes, b.boxes, strict=True))
    )


def test_frames_first_then_their_views(tiny: Path) -> None:
    tokens = [token for batch in loaded(tiny) for token in batch.tokens]
    assert len(tokens) == 8
    order = tokens[:SAMPLES]
    assert sorted(order) == [f"sample-{k}" for k in range(SAMPLES)]
    assert tokens[SAMPLES : 2 * SAMPLES] == [f"{token}#view1" for token in order]
    assert tokens[2 * SAMPLES :] == [f"{token}#view2" for token in order[:2]]


def test_batches_are_distinct(tiny: Path) -> None:
    images = [image for batch in loaded(tiny, batches=6) for image in batch.images]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_view_zero_is_the_frame_itself(tiny: Path) -> None:
    batch = loaded(tiny, batch_size=1)[0]
    assert torch.equal(batch.lidar_aug[0], torch.eye(4))
    assert float(batch.image_aug[0, :, 0, 1].abs().max()) == 0.0


def test_a_batch_depends_on_seed_and_index_not_on_the_order_of_calls(tiny: Path) -> None:
    forward, backward = loaded(tiny), loaded(tiny)
    there = {index: forward[index] for index in range(4)}
    back = {index: backward[index] for index in (3, 1, 0, 2)}
    torch.manual_seed(123)
    assert all(same(there[index], back[index]) for index in range(4))
    assert all(same(there[index], batch) for index, batch in enumerate(loaded(tiny, batches=9)[:4]))


def test_another_seed_frame_or_view_is_augmented_otherwise(tiny: Path) -> None:
    sample, options = open_frames(f"nuscenes:{tiny}")[0], PrepareOptions((32, 64))
    drawn = [
        draw_view(sample, frame, view, options, seed)
        for seed, frame, view in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2))
    ]
    assert len({bev for bev, _ in drawn}) == 4
    assert len({tuple(images) for _, images in drawn}) == 4


@pytest.mark.parametrize("spec", ["nuscenes", "example"])
def test_matrices_of_a_batch_agree_with_each_other(tiny: Path, spec: str) -> None:
    batch = load(f"nuscenes:{tiny}" if spec == "nuscenes" else spec, config=CONFIG)[0].to(dtype=torch.float64)
    expected = batch.intrinsics @ torch.linalg.inv(batch.camera2lidar)
    torch.testing.assert_close(batch.lidar2image, expected, atol=1e-3, rtol=1e-5)


def test_list_like(tiny: Path) -> None:
    batches = loaded(tiny)
    assert len(batches) == len(list(batches)) == len(list(batches)) == 4
    assert same(batches[-1], batches[3])
    assert len(batches[1:3]) == 2
    with pytest.raises(IndexError, match="batch 4 of 4"):
        batches[4]
    assert batches.description.startswith(f"nuscenes:{tiny}: 4 x 2 samples, 3 of 3 frames, 5 augmented views")


def test_kept_batches_are_bounded_by_bytes(tiny: Path) -> None:
    made: list[int] = []
    batch = loaded(tiny)[0]
    size = sum(t.numel() * t.element_size() for t in (batch.images, *batch.points, *batch.boxes))

    def make(index: int) -> Batch:
        made.append(index)
        return batch

    small = Batches(make, 4, "", cache_bytes=2 * size)
    for _ in range(3):
        list(small)
    assert made == [0, 1, 2, 3, 2, 3, 2, 3]


def one_box_frame(tiny: Path, folder: Path, boxes: list[list[float]]) -> Path:
    """A folder with the first tiny frame and these boxes, all cars."""
    info = json.loads((tiny / "info.json").read_text())
    frame = info["data_list"][0]
    frame["instances"] = [{"bbox_label_3d": 0, "bbox_3d": box} for box in boxes]
    (folder / "info.json").write_text(json.dumps({**info, "data_list": [frame]}))
    for name in ("samples", "sweeps"):
        (folder / name).symlink_to(tiny / name)
    return folder


def test_views_keep_a_box_in_range(tiny: Path, tmp_path: Path) -> None:
    corner = one_box_frame(tiny, tmp_path, [[52.0, 51.0, 0.0, 4.0, 2.0, 1.5, 0.0]])  # most turns lose it
    batches = loaded(corner, batches=10, batch_size=1, kind="frames")
    assert all(len(batch.boxes[0]) == 1 for batch in batches)
    assert bool(batches[3].boxes[0][0, 7:].isnan().all())  # no velocity on record


def test_frames_without_a_box_in_range_are_passed_over_and_counted(own_tiny: Path) -> None:
    info = json.loads((own_tiny / "info.json").read_text())
    info["data_list"][1]["instances"] = [{"bbox_label_3d": -1, "bbox_3d": [1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.0]}]
    info["data_list"][2]["instances"] = [{"bbox_label_3d": 0, "bbox_3d": [100.0, 2.0, 0.0, 4.0, 2.0, 1.5, math.pi]}]
    (own_tiny / "info.json").write_text(json.dumps(info))
    batches = loaded(own_tiny, kind="frames")
    assert {token.partition("#")[0] for batch in batches for token in batch.tokens} == {"sample-0"}
    assert batches.description.endswith("2 frames without a box in range passed over")


def test_no_frame_with_a_box_in_range(tiny: Path, tmp_path: Path) -> None:
    far = one_box_frame(tiny, tmp_path, [[200.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0]])
    with pytest.raises(DataError, match=r"frames:.*no box of a known class in range in any of 1 frames.*sample-0"):
        loaded(far, kind="frames")
    wide = LidarConfig(point_cloud_range=(-300.0, -300.0, -5.0, 300.0, 300.0, 3.0))
    config = BEVFusionConfig(lidar=wide).with_image_size(32, 64)
    assert len(load(f"frames:{far}", config=config, batches=1, batch_size=1)[0].boxes[0]) == 1
