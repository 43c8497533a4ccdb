"""What cameras and LiDAR see of a scene, against geometry written down here a second time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastalter.data.synthetic import SyntheticSettings
from fastalter.data.synthetic.camera import take_picture, view_of
from fastalter.data.synthetic.kinds import Look
from fastalter.data.synthetic.lidar import MAX_RANGE, scan
from fastalter.data.synthetic.rays import inverse_pose
from fastalter.data.synthetic.rig import MOUNTS, lidar_to_ego
from fastalter.data.synthetic.world import Drive, Scene, Thing, make_scene

SETTINGS = SyntheticSettings(samples=2, seed=1, azimuth_steps=720)
RED = Look((1.0, 0.0, 0.0))


def scene_with(*things: Thing, settings: SyntheticSettings = SETTINGS, discs: bool = False) -> Scene:
    """A scene of an ego vehicle at the origin that stands still, looking along +x, in plain light."""
    scene = make_scene(settings, 0)
    drive = Drive(position=(0.0, 0.0), heading=0.0, middle=0.0, speed=0.0, turn=0.0)
    light = replace(scene.light, tint=(1.0, 1.0, 1.0), ground=(0.4, 0.4, 0.4), sky=(0.5, 0.5, 0.5))
    return replace(scene, drive=drive, things=things, light=light, discs=scene.discs if discs else ())


def block(
    x: float, y: float, size: tuple[float, float, float] = (2.0, 2.0, 2.0), label: int = 0, yaw: float = 0.0
) -> Thing:
    return Thing(label, size, (x, y), yaw, 0.0, RED)


def red_pixels(image: np.ndarray) -> np.ndarray:
    return (image[..., 0].astype(int) - image[..., 1:].max(-1)) > 100


@pytest.mark.parametrize(
    ("camera", "place"),
    [
        ("CAM_FRONT", (12.0, 1.0)),
        ("CAM_BACK", (-12.0, 2.0)),
        ("CAM_FRONT_LEFT", (7.0, 9.0)),
        ("CAM_FRONT_RIGHT", (6.0, -9.0)),
        ("CAM_BACK_LEFT", (-3.0, 11.0)),
        ("CAM_BACK_RIGHT", (-3.0, -11.0)),
    ],
)
def test_a_box_is_painted_where_the_calibration_projects_it(camera: str, place: tuple[float, float]) -> None:
    scene = scene_with(block(*place))
    red = red_pixels(take_picture(scene, camera, 0.0, 0).image)
    others = [name for name in MOUNTS if name != camera and red_pixels(take_picture(scene, name, 0.0, 0).image).any()]
    assert not others
    mount = MOUNTS[camera]
    corners = np.array([[place[0] + a, place[1] + b, c, 1.0] for a in (-1, 1) for b in (-1, 1) for c in (0, 2)])
    seen = corners @ np.linalg.inv(mount.to_ego()).T
    pixels = seen[:, :3] @ mount.intrinsics(SETTINGS.image_size).T
    pixels = pixels[:, :2] / pixels[:, 2:]
    rows, columns = np.nonzero(red)
    assert columns.min() == pytest.approx(pixels[:, 0].min(), abs=1.0)
    assert columns.max() + 1 == pytest.approx(pixels[:, 0].max(), abs=1.0)
    assert rows.min() == pytest.approx(pixels[:, 1].min(), abs=1.0)
    assert rows.max() + 1 == pytest.approx(pixels[:, 1].max(), abs=1.0)


def test_the_nearer_box_hides_the_farther_one_whatever_their_order() -> None:
    near, far = block(8.0, 0.0, (1.0, 4.0, 2.0)), replace(block(16.0, 0.0, (1.0, 2.0, 1.5)), look=Look((0.0, 1.0, 0.0)))
    for things in ((near, far), (far, near)):
        picture = take_picture(scene_with(*things), "CAM_FRONT", 0.0, 0)
        hidden = things.index(far)
        assert picture.seen[hidden] == 0
        assert picture.alone[hidden] > 20
        assert picture.seen[1 - hidden] == picture.alone[1 - hidden] > 100
        assert not ((picture.image[..., 1].astype(int) - picture.image[..., 0]) > 100).any()
        returns = scan(scene_with(*things), 0.0, 0)
        assert not (returns.owner == hidden).any()
        assert (returns.owner == 1 - hidden).sum() > 20


def test_a_box_that_surrounds_the_near_plane_is_still_drawn() -> None:
    picture = take_picture(scene_with(block(4.0, 3.5, (11.0, 2.9, 3.6))), "CAM_FRONT_LEFT", 0.0, 0)
    assert red_pixels(picture.image).mean() > 0.1


def test_paint_on_the_ground_is_seen_by_cameras_and_not_by_the_lidar() -> None:
    base = make_scene(SETTINGS, 0)
    disc = replace(base.discs[0], position=(9.0, 0.0), radius=1.5, colour=(1.0, 0.0, 0.0))
    plain = scene_with()
    painted = replace(plain, discs=(disc,))
    red = red_pixels(take_picture(painted, "CAM_FRONT", 0.0, 0).image)
    view = view_of("CAM_FRONT", SETTINGS.image_size)
    there = np.hypot(view.ground[..., 0] - 9.0, view.ground[..., 1]) < 1.5
    assert (red == (there & view.below)).mean() > 0.999
    np.testing.assert_array_equal(scan(plain, 0.0, 0).points, scan(painted, 0.0, 0).points)


def test_returns_lie_on_surfaces() -> None:
    thing = block(9.0, -2.0, yaw=0.4)
    found = scan(scene_with(thing), 0.0, 0)
    to_ego = lidar_to_ego()
    ego = found.points[:, :3] @ to_ego[:3, :3].T + to_ego[:3, 3]
    ranges = np.linalg.norm(found.points[:, :3], axis=1)
    assert ranges.max() < MAX_RANGE + 1
    ground = found.owner < 0
    # 2 cm of range noise along the ray; at grazing rays the height barely feels it.
    assert np.abs(ego[ground, 2]).max() < 0.12
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    local = np.column_stack([(ego[~ground, :2] - (9.0, -2.0)) @ turn, ego[~ground, 2] - 1.0])
    assert (~ground).sum() > 50
    assert np.abs(np.abs(local).max(1) - 1.0).max() < 0.12
    rings, elevation = found.points[:, 4], np.degrees(np.arcsin(found.points[:, 2] / ranges))
    np.testing.assert_allclose(elevation, -30.67 + rings * 41.34 / 31, atol=1e-3)


def test_some_returns_are_lost_and_intensity_tells_no_class() -> None:
    full = 2 * SETTINGS.azimuth_steps  # the two lowest beams always meet the ground
    found = scan(scene_with(), 0.0, 0)
    kept = (found.points[:, 4] < 2).sum() / full
    assert 0.8 < kept < 0.9
    names = {label: [] for label in range(10)}
    for number in range(30):
        scene = make_scene(SETTINGS, number)
        found = scan(scene, 0.0, 0)
        for index, thing in enumerate(scene.things[: scene.annotated]):
            names[thing.label].append(
                found.points[found.owner == index, 3].mean() if (found.owner == index).any() else 55
            )
    means = [np.mean(values) for values in names.values()]
    assert max(means) - min(means) < 25  # each thing draws its own, 20 to 90


def test_a_turned_vehicle_sees_the_same_turned_world() -> None:
    still = scene_with(block(10.0, 3.0))
    turned = replace(
        still,
        drive=replace(still.drive, position=(5.0, -4.0), heading=1.1),
        things=(
            replace(
                still.things[0],
                position=(5 + 10 * np.cos(1.1) - 3 * np.sin(1.1), -4 + 10 * np.sin(1.1) + 3 * np.cos(1.1)),
                yaw=1.1,
            ),
        ),
        light=replace(still.light, sun=still.light.sun + 1.1),
    )
    a, b = scan(still, 0.0, 0).points, scan(turned, 0.0, 0).points
    assert len(a) == len(b)
    np.testing.assert_allclose(a, b, atol=1e-3)
    first, second = (take_picture(scene, "CAM_FRONT_LEFT", 0.0, 0) for scene in (still, turned))
    assert np.abs(first.seen - second.seen).max() <= 1


def test_cameras_expose_before_the_key_scan_with_the_vehicle_where_it_was_then() -> None:
    scene = replace(scene_with(block(12.0, 0.0)), drive=Drive((0.0, 0.0), 0.0, 0.0, 10.0, 0.0))
    early, late = (red_pixels(take_picture(scene, "CAM_FRONT", t, 0).image).sum() for t in (-0.3, 0.0))
    assert late > 1.3 * early
    np.testing.assert_allclose(inverse_pose(scene.drive.pose(-0.3))[0, 3], 3.0)
