"""Synthetic samples straight from memory, the same that the files of a written dataset hold (but for JPEG)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastalter.data.boxes import BOX_SIZE
from fastalter.data.sample import Array, Sample, Sweep
from fastalter.data.synthetic.camera import take_picture
from fastalter.data.synthetic.lidar import scan
from fastalter.data.synthetic.rays import inverse_pose
from fastalter.data.synthetic.rig import MOUNTS, lidar_to_ego
from fastalter.data.synthetic.settings import KEY_INTERVAL, SyntheticSettings
from fastalter.data.synthetic.world import Scene, make_scene


@dataclass(frozen=True)
class Moment:
    """One recording: when (s from the scene's first keyframe), and which scan or sample of the scene it is."""

    t: float
    number: int


def scan_moments(settings: SyntheticSettings) -> list[Moment]:
    """Every scan of a scene in order; each (sweeps + 1)-th belongs to a keyframe."""
    per_key = settings.sweeps + 1
    count = (settings.samples - 1) * per_key + 1
    return [Moment(number * KEY_INTERVAL / per_key, number) for number in range(count)]


def camera_moment(name: str, sample: int) -> Moment:
    """When a camera exposes for a keyframe."""
    return Moment(sample * KEY_INTERVAL - MOUNTS[name].early, sample)


class SyntheticFrames(Sequence[Sample]):
    """The keyframes of a synthetic dataset, scene by scene, made when asked for.

    sweeps        how many earlier scans of the scene are added to each key scan, as far as there are
    keep_unseen   keep boxes without a single LiDAR point (training drops them)
    """

    def __init__(self, settings: SyntheticSettings, sweeps: int = 0, keep_unseen: bool = False) -> None:
        self.settings, self.sweeps, self.keep_unseen = settings, sweeps, keep_unseen
        self.description = f"synthetic, {settings.scenes + settings.val_scenes} scenes, seed {settings.seed}"
        self._scene: Scene | None = None

    def __len__(self) -> int:
        return (self.settings.scenes + self.settings.val_scenes) * self.settings.samples

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number, sample = divmod(index % len(self), self.settings.samples)
        if self._scene is None or self._scene.number != number:
            self._scene = make_scene(self.settings, number)
        return make_sample(self._scene, sample, self.sweeps, self.keep_unseen)


def make_sample(scene: Scene, sample: int, sweeps: int, keep_unseen: bool) -> Sample:
    """Keyframe `sample` of a scene."""
    t = sample * KEY_INTERVAL
    key_to_global = scene.drive.pose(t) @ lidar_to_ego()
    images, lidar2camera, intrinsics = [], [], []
    for name, mount in MOUNTS.items():
        moment = camera_moment(name, sample)
        images.append(take_picture(scene, name, moment.t, sample).image)
        camera_to_global = scene.drive.pose(moment.t) @ mount.to_ego()
        lidar2camera.append(inverse_pose(camera_to_global) @ key_to_global)
        padded = np.eye(4)
        padded[:3, :3] = mount.intrinsics(scene.settings.image_size)
        intrinsics.append(padded)
    moments = scan_moments(scene.settings)
    last = sample * (scene.settings.sweeps + 1)
    scans = [scan(scene, moment.t, moment.number) for moment in reversed(moments[max(0, last - sweeps) : last + 1])]
    to_key = [inverse_pose(key_to_global) @ scene.drive.pose(m.t) @ lidar_to_ego() for m in moments[: last + 1]]
    boxes, labels = lidar_boxes(scene, t, inverse_pose(key_to_global))
    hit = np.bincount(scans[0].owner + 1, minlength=len(scene.things) + 1)[1 : scene.annotated + 1] > 0
    kept = torch.from_numpy(hit | keep_unseen)
    return Sample(
        token=f"synthetic-{scene.settings.seed}-{scene.number}-{sample}",
        images=tuple(images),
        sweeps=tuple(Sweep(found.points, to_key[last - k], t - moments[last - k].t) for k, found in enumerate(scans)),
        lidar2camera=torch.from_numpy(np.stack(lidar2camera)),
        intrinsics=torch.from_numpy(np.stack(intrinsics)),
        boxes=torch.from_numpy(boxes)[kept],
        labels=torch.from_numpy(labels)[kept],
    )


def lidar_boxes(scene: Scene, t: float, global_to_lidar: Array) -> tuple[Array, Array]:
    """Annotated boxes [G, 9] float64, canonical, in the LiDAR frame, and labels [G] int64."""
    things = scene.things[: scene.annotated]
    rows = []
    for thing in things:
        x, y, z, *size, yaw = thing.box(t - scene.drive.middle)
        centre = global_to_lidar @ (x, y, z, 1.0)
        heading = global_to_lidar[:3, :3] @ (math.cos(yaw), math.sin(yaw), 0.0)
        velocity = global_to_lidar[:3, :3] @ (*thing.velocity, 0.0)
        rows.append([*centre[:3], *size, math.atan2(heading[1], heading[0]), *velocity[:2]])
    boxes = np.array(rows, dtype=np.float64).reshape(-1, BOX_SIZE)
    return boxes, np.array([thing.label for thing in things], dtype=np.int64)
