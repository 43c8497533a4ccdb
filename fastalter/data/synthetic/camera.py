"""Cameras: one ray per pixel, painted boxes over a painted ground, with a depth buffer for who hides whom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastalter.data.sample import Array
from fastalter.data.synthetic import rays
from fastalter.data.synthetic.kinds import Look
from fastalter.data.synthetic.rig import MOUNTS
from fastalter.data.synthetic.world import Scene

FOG = 45.0
"""Distance in metres over which the ground fades into the horizon."""
NOISE = 0.03
"""Standard deviation of the sensor noise, of a full scale of 1."""
NEAR = 0.2
BUMPER, FRONT, REAR = 0.3, (1.0, 1.0, 0.8), (0.35, 0.0, 0.0)
"""How high up the bumpers go, and their colours: which way a thing points only the cameras can tell."""
TILES = 64
"""The ground's texture repeats after TILES patches of PATCH metres."""
PATCH = 0.5


@dataclass(frozen=True)
class View:
    """A camera's rays in the ego frame, and where they meet the ground.

    directions [H, W, 3] float32, not normalised; origin [3]; ground [H, W, 2] float32 metres, where `below` [H, W]
    says that the ray points down; haze [H, W, 1]: 0 near, 1 far; height [H, W, 1]: sine of
    the elevation; to_pixel [3, 4]: ego frame -> scaled pixels.
    """

    origin: Array
    directions: Array
    ground: Array
    below: Array
    haze: Array
    height: Array
    to_pixel: Array


@lru_cache(maxsize=32)
def view_of(name: str, image_size: tuple[int, int]) -> View:
    """The view of one of the rig's cameras."""
    mount = MOUNTS[name]
    to_ego, intrinsics = mount.to_ego(), mount.intrinsics(image_size)
    rows, columns = np.mgrid[: image_size[0], : image_size[1]] + 0.5
    pixels = np.stack([columns, rows, np.ones_like(rows)], -1)
    directions = (pixels @ np.linalg.inv(intrinsics).T @ to_ego[:3, :3].T).astype(np.float32)
    origin = to_ego[:3, 3]
    below = directions[..., 2] < -1e-3
    distance = np.where(below, -origin[2] / np.minimum(directions[..., 2], -1e-3), 0.0).astype(np.float32)
    ground = origin[:2].astype(np.float32) + directions[..., :2] * distance[..., None]
    length = np.linalg.norm(directions, axis=-1)
    haze = 1 - np.exp(-distance * length / FOG)
    height = directions[..., 2] / length
    to_pixel = intrinsics @ np.linalg.inv(to_ego)[:3]
    return View(origin, directions, ground, below, haze[..., None], height[..., None], to_pixel)


@dataclass(frozen=True)
class Picture:
    """image [H, W, 3] uint8; seen, alone [G]: pixels of each thing, with the others and if it stood alone."""

    image: Array
    seen: Array
    alone: Array


def take_picture(scene: Scene, name: str, t: float, sample: int) -> Picture:
    """What a camera sees at time t; `sample` only seeds its noise."""
    view = view_of(name, scene.settings.image_size)
    pose = scene.drive.pose(t)
    colours = _background(scene, view, pose)
    depth = np.full(view.below.shape, np.inf, dtype=np.float32)
    owner = np.full(view.below.shape, -1, dtype=np.int32)
    boxes = rays.to_frame(scene.boxes(t), pose)
    alone = np.zeros(len(boxes), dtype=np.int64)
    sun = scene.light.sun - math.atan2(pose[1, 0], pose[0, 0])
    for index, box in enumerate(boxes):
        window = _window(view, box)
        if window is None:
            continue
        hits = rays.cast(view.origin, view.directions[window], box)
        alone[index] = int(np.isfinite(hits.distance).sum())
        front = hits.distance < depth[window]
        if not front.any():
            continue
        depth[window][front] = hits.distance[front]
        owner[window][front] = index
        point, axis = hits.point[front], hits.axis[front]
        colours[window][front] = _paint(scene.things[index].look, point, axis, box) * _shade(point, axis, box[6], sun)
    rng = scene.rng(1 + list(MOUNTS).index(name), sample)
    noise = rng.standard_normal(colours.shape, dtype=np.float32) * np.float32(NOISE)
    lit = colours * np.array(scene.light.tint, dtype=np.float32) + noise
    seen = np.bincount(owner[owner >= 0], minlength=len(boxes))
    return Picture((lit.clip(0, 1) * 255).astype(np.uint8), seen, alone)


def _background(scene: Scene, view: View, pose: Array) -> Array:
    """[H, W, 3] float32: sky, textured ground, discs."""
    sky = np.array(scene.light.sky, dtype=np.float32)
    where = view.ground @ pose[:2, :2].T.astype(np.float32) + pose[:2, 3].astype(np.float32)
    patch = np.floor(where / PATCH).astype(np.int32) % TILES
    colours = _texture(scene)[patch[..., 1], patch[..., 0]]
    for disc in scene.discs:
        east, north = where[..., 0] - np.float32(disc.position[0]), where[..., 1] - np.float32(disc.position[1])
        colours[east * east + north * north < np.float32(disc.radius**2)] = disc.colour
    colours += (sky * np.float32(0.9) - colours) * view.haze
    return np.where(view.below[..., None], colours, sky * (1 - np.float32(0.35) * view.height))


@lru_cache(maxsize=4)
def _texture(scene: Scene) -> Array:
    """[TILES, TILES, 3] float32 colours of the ground."""
    rng = scene.rng(0)
    blotches = rng.normal(1.0, 0.12, (TILES // 8, TILES // 8)).repeat(8, 0).repeat(8, 1)
    shade = (blotches * rng.normal(1.0, 0.08, (TILES, TILES)))[..., None]
    texture: Array = (shade * np.array(scene.light.ground)).clip(0, 1).astype(np.float32)
    return texture


def _window(view: View, box: Array) -> tuple[slice, slice] | None:
    """Rows and columns that a box can cover; None if it is out of sight."""
    height, width = view.below.shape
    scaled = np.column_stack([rays.corners(box), np.ones(8)]) @ view.to_pixel.T
    ahead = scaled[:, 2] > NEAR
    if not ahead.any():
        return None
    if not ahead.all():  # it reaches behind the camera, where a projection says nothing
        return slice(0, height), slice(0, width)
    pixels = scaled[:, :2] / scaled[:, 2:]
    (left, top), (right, bottom) = np.floor(pixels.min(0)), np.ceil(pixels.max(0))
    rows = slice(max(0, int(top)), min(height, int(bottom)))
    columns = slice(max(0, int(left)), min(width, int(right)))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def _paint(look: Look, point: Array, axis: Array, box: Array) -> Array:
    """[P, 3] float32 colours at points of the surface; the roof has the first colour alone, clutter no bumpers."""
    height = point[:, 2] / box[5] + 0.5
    across = np.where(axis == 0, point[:, 1], point[:, 0])
    if look.pattern == "band":
        second = (height > 0.5) & (height < 0.85)
    elif look.pattern == "halves":
        second = height > 0.55
    elif look.pattern == "ribs":
        second = across / look.period % 1 < 0.5
    elif look.pattern == "stripes":
        second = (across + point[:, 2]) / look.period % 1 < 0.5
    else:
        second = np.zeros(len(point), dtype=bool)
    second &= axis != 2
    if look.pattern != "plain" and box[3] > box[4]:  # longer than wide: it has a front with lights and a rear
        bumper = (axis == 0) & (height < BUMPER)
        second = np.where(bumper, np.where(point[:, 0] > 0, 2, 3), second)
    colours: Array = np.array([look.first, look.second, FRONT, REAR], dtype=np.float32)[second.astype(np.int64)]
    return colours


def _shade(point: Array, axis: Array, yaw: float, sun: float) -> Array:
    """[P, 1] float32 brightness of a face: the roof is brightest, sides by how they face the sun."""
    normal = np.where(axis == 0, yaw, yaw + math.pi / 2)
    sign = np.sign(np.where(axis == 0, point[:, 0], point[:, 1]))
    side = 0.72 + 0.22 * sign * np.cos(normal - sun)
    return np.where(axis == 2, 1.0, side).astype(np.float32)[:, None]
