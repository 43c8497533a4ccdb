"""The scene: geometry that can be checked without rendering."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fastalter.data import CLASS_NAMES
from fastalter.data.synthetic import SyntheticSettings
from fastalter.data.synthetic.kinds import KINDS
from fastalter.data.synthetic.rays import cast, corners, inverse_pose, to_frame
from fastalter.data.synthetic.rig import MOUNTS, beam_directions, lidar_to_ego
from fastalter.data.synthetic.settings import KEY_INTERVAL
from fastalter.data.synthetic.tables import visibility
from fastalter.data.synthetic.world import REACH, Drive, make_scene
from fastalter.errors import DataError

SETTINGS = SyntheticSettings(samples=6, seed=3)


def test_an_arc_is_what_small_steps_along_it_make() -> None:
    drive = Drive(position=(3.0, -2.0), heading=0.7, middle=1.0, speed=4.0, turn=0.3)
    position, heading, step = np.array([3.0, -2.0]), 0.7, 1e-4
    for _ in range(round(1.5 / step)):  # midpoint rule
        heading += 0.3 * step / 2
        position = position + step * 4.0 * np.array([math.cos(heading), math.sin(heading)])
        heading += 0.3 * step / 2
    pose = drive.pose(2.5)
    np.testing.assert_allclose(pose[:2, 3], position, atol=1e-7)
    assert math.atan2(pose[1, 0], pose[0, 0]) == pytest.approx(heading)


def test_a_straight_drive_does_not_divide_by_its_turn() -> None:
    drive = Drive(position=(0.0, 0.0), heading=0.0, middle=0.0, speed=2.0, turn=0.0)
    np.testing.assert_allclose(drive.pose(1.5)[:3, 3], [3.0, 0.0, 0.0])


def test_things_stay_in_reach_apart_and_on_the_ground() -> None:
    for number in range(8):
        scene = make_scene(SETTINGS, number)
        for k in range(SETTINGS.samples):
            boxes = scene.boxes(k * KEY_INTERVAL)
            ego = scene.drive.pose(k * KEY_INTERVAL)
            inside = np.linalg.inv(ego @ lidar_to_ego()) @ np.column_stack([boxes[:, :2], *np.ones((2, len(boxes)))]).T
            assert np.abs(inside[:2]).max() <= REACH
            np.testing.assert_allclose(boxes[:, 2], boxes[:, 5] / 2)
            gaps = np.hypot(*(boxes[:, None, :2] - boxes[None, :, :2]).transpose(2, 0, 1))
            radius = np.hypot(boxes[:, 3], boxes[:, 4]) / 2
            np.fill_diagonal(gaps, np.inf)
            assert (gaps >= radius[:, None] + radius).all()
            assert np.hypot(*(boxes[:, :2] - ego[:2, 3]).T).min() > 3.5


def test_every_class_appears_and_moves_as_it_may() -> None:
    things = [thing for number in range(40) for thing in make_scene(SETTINGS, number).things]
    assert {thing.label for thing in things} == {-1, *range(10)}
    for thing in things:
        top = KINDS[CLASS_NAMES[thing.label]].top_speed if thing.label >= 0 else 0.0
        assert 0 <= thing.speed <= top
    moving = [thing.speed > 0 for thing in things if thing.label == CLASS_NAMES.index("car")]
    assert 0.2 < np.mean(moving) < 0.8


def test_classes_of_a_pair_share_their_size_but_not_their_colour() -> None:
    for a, b in (
        ("truck", "construction_vehicle"),
        ("bus", "trailer"),
        ("motorcycle", "bicycle"),
        ("pedestrian", "traffic_cone"),
    ):
        assert KINDS[a].size == KINDS[b].size
        assert np.abs(np.subtract(KINDS[a].look.first, KINDS[b].look.first)).max() > 0.3


def test_a_scene_depends_on_seed_and_number_alone() -> None:
    assert make_scene(SETTINGS, 2) == make_scene(SETTINGS, 2)
    assert make_scene(SETTINGS, 2).things != make_scene(SETTINGS, 3).things
    assert make_scene(SETTINGS, 2).things != make_scene(replace(SETTINGS, seed=4), 2).things


def test_rays_meet_a_box_where_a_march_along_them_does() -> None:
    rng = np.random.default_rng(0)
    box = np.array([4.0, 1.0, 0.9, 3.0, 1.5, 1.8, 0.6])
    origin = np.array([0.0, 0.0, 1.2])
    targets = box[:3] + rng.uniform(-2.5, 2.5, (200, 3))
    directions = ((targets - origin) / np.linalg.norm(targets - origin, axis=1)[:, None]).astype(np.float32)
    hits = cast(origin, directions, box)
    steps = np.arange(0, 12, 0.002)
    along = origin + steps[None, :, None] * directions[:, None].astype(np.float64) - box[:3]
    cos, sin = math.cos(box[6]), math.sin(box[6])
    local = np.stack(
        [cos * along[..., 0] + sin * along[..., 1], cos * along[..., 1] - sin * along[..., 0], along[..., 2]], -1
    )
    inside = (np.abs(local) <= box[3:6] / 2).all(-1)
    first = np.where(inside.any(1), steps[inside.argmax(1)], np.inf)
    agree = np.isfinite(first) == np.isfinite(hits.distance)
    assert agree.mean() > 0.98  # a march can miss a corner that a ray grazes
    both = np.isfinite(first) & np.isfinite(hits.distance)
    assert 40 < both.sum() < 160
    np.testing.assert_allclose(hits.distance[both], first[both], atol=3e-3)
    face = np.take_along_axis(np.abs(hits.point[both]), hits.axis[both][:, None], 1)[:, 0]
    np.testing.assert_allclose(face, (box[3:6] / 2)[hits.axis[both]], atol=1e-4)


def test_rays_from_behind_or_away_miss() -> None:
    box = np.array([4.0, 0.0, 0.5, 1.0, 1.0, 1.0, 0.0])
    directions = np.array([[-1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=np.float32)
    distance = cast(np.array([0.0, 0.0, 0.5]), directions, box).distance
    assert np.isinf(distance[:2]).all()
    assert distance[2] == pytest.approx(3.5)


def test_frames_and_inverses() -> None:
    scene = make_scene(SETTINGS, 1)
    pose = scene.drive.pose(1.2)
    np.testing.assert_allclose(inverse_pose(pose) @ pose, np.eye(4), atol=1e-12)
    for before, after in zip(scene.boxes(1.2), to_frame(scene.boxes(1.2), pose), strict=True):
        moved = np.column_stack([corners(before), np.ones(8)]) @ np.linalg.inv(pose).T
        np.testing.assert_allclose(corners(after), moved[:, :3], atol=1e-9)


def test_the_rig_is_a_nuscenes_car() -> None:
    for name, mount in MOUNTS.items():
        to_ego = mount.to_ego()
        np.testing.assert_allclose(to_ego[:3, :3] @ to_ego[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(to_ego[:3, :3]) == pytest.approx(1)
        assert to_ego[2, 1] < -0.99, name  # y points down
    assert MOUNTS["CAM_FRONT"].to_ego()[0, 2] > 0.99
    assert MOUNTS["CAM_BACK"].to_ego()[0, 2] < -0.99
    assert MOUNTS["CAM_FRONT_LEFT"].to_ego()[1, 2] > 0.5
    half = MOUNTS["CAM_FRONT"].intrinsics((450, 800))
    np.testing.assert_allclose(half[:2] * 2, MOUNTS["CAM_FRONT"].intrinsics((900, 1600))[:2])
    forward = lidar_to_ego()[:3, :3] @ (0.0, 1.0, 0.0)
    assert forward[0] > 0.99  # a nuScenes LiDAR looks along its y axis
    assert forward[2] < 0  # and a little down
    directions = beam_directions(8)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1)
    np.testing.assert_allclose(directions[:, 2, 0], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("seen", "alone", "level"), [(0, 0, "1"), (4, 10, "1"), (5, 10, "2"), (7, 10, "3"), (9, 10, "4")]
)
def test_visibility_levels(seen: int, alone: int, level: str) -> None:
    assert visibility(seen, alone) == level


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 1}, "samples is 1; give 2 to 20"),
        ({"scenes": -1}, "scenes is -1"),
        ({"scenes": 0, "val_scenes": 0}, "no scenes"),
        ({"sweeps": 10}, "sweeps is 10; give 0 to 9"),
        ({"image_size": (8, 8)}, "image size 8x8"),
        ({"azimuth_steps": 3}, "azimuth_steps is 3"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_make_no_dataset_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(SyntheticSettings(), **change)
