"""One scene as files and as records of the tables: what a worker writes and hands back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from fastalter.data.synthetic.camera import take_picture
from fastalter.data.synthetic.frames import camera_moment, scan_moments
from fastalter.data.synthetic.kinds import KINDS
from fastalter.data.synthetic.lidar import scan
from fastalter.data.synthetic.rig import MOUNTS
from fastalter.data.synthetic.settings import KEY_INTERVAL, SyntheticSettings
from fastalter.data.synthetic.tables import LIDAR, Record, pose_record, scene_name, token, upright, visibility
from fastalter.data.synthetic.world import CLASSES, Scene, Thing, make_scene

START = 1_514_764_800_000_000
"""Time stamp of the first scene, microseconds."""
SCENE_PERIOD = 20_000_000
"""From the start of a scene to that of the next, microseconds."""
JPEG_QUALITY = 95

Tables = dict[str, list[Record]]


def record_scene(root: Path, settings: SyntheticSettings, number: int) -> Tables:
    """Write the images and scans of a scene below `root`, whose folders exist; return its records by table."""
    return _Recorder(root, make_scene(settings, number)).record()


class _Recorder:
    def __init__(self, root: Path, scene: Scene) -> None:
        self.root, self.scene, self.settings = root, scene, scene.settings
        self.name = scene_name(scene.number)
        self.tables: Tables = {
            table: [] for table in ("scene", "sample", "sample_data", "ego_pose", "instance", "sample_annotation")
        }
        count = len(scene.things)
        self.returns: list[Counter[int]] = []
        self.seen = np.zeros((self.settings.samples, count), dtype=np.int64)
        self.alone = np.zeros((self.settings.samples, count), dtype=np.int64)

    def record(self) -> Tables:
        samples = [token("sample", self.settings.seed, self.name, k) for k in range(self.settings.samples)]
        self._scene_and_samples(samples)
        self._scans(samples)
        for channel in MOUNTS:
            self._pictures(channel, samples)
        for index in range(self.scene.annotated):
            self._annotations(index, samples)
        return self.tables

    def _stamp(self, t: float) -> int:
        return START + self.scene.number * SCENE_PERIOD + round(1e6 * t)

    def _scene_and_samples(self, samples: list[str]) -> None:
        scene = token("scene", self.settings.seed, self.name)
        self.tables["scene"].append(
            {
                "token": scene,
                "log_token": token("log"),
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": self.name,
                "description": f"synthetic traffic, {len(self.scene.things)} boxes",
            }
        )
        self.tables["sample"] += _chained(
            {"token": sample, "timestamp": self._stamp(k * KEY_INTERVAL), "scene_token": scene}
            for k, sample in enumerate(samples)
        )

    def _recording(self, channel: str, t: float, sample: str, key: bool, form: str, size: tuple[int, int]) -> Record:
        """A sample_data record, its pose added to the table, with the name its file must have."""
        stamp = self._stamp(t)
        suffix = "jpg" if form == "jpg" else "pcd.bin"
        pose = token("ego_pose", self.settings.seed, self.name, channel, stamp)
        self.tables["ego_pose"].append({"token": pose, "timestamp": stamp, **pose_record(self.scene.drive.pose(t))})
        return {
            "token": token("sample_data", self.settings.seed, self.name, channel, stamp),
            "sample_token": sample,
            "ego_pose_token": pose,
            "calibrated_sensor_token": token("calibrated_sensor", channel),
            "timestamp": stamp,
            "fileformat": form,
            "is_key_frame": key,
            "height": size[0],
            "width": size[1],
            "filename": f"{'samples' if key else 'sweeps'}/{channel}/{self.name}__{channel}__{stamp}.{suffix}",
        }

    def _scans(self, samples: list[str]) -> None:
        records = []
        for moment in scan_moments(self.settings):
            place, between = divmod(moment.number, self.settings.sweeps + 1)
            found = scan(self.scene, moment.t, moment.number)
            # A scan between two keyframes belongs to the later one, as in nuScenes.
            record = self._recording(LIDAR, moment.t, samples[place + (between > 0)], between == 0, "pcd", (0, 0))
            (self.root / record["filename"]).write_bytes(found.points.tobytes())
            records.append(record)
            if between == 0:
                self.returns.append(Counter(found.owner.tolist()))
        self.tables["sample_data"] += _chained(records)

    def _pictures(self, channel: str, samples: list[str]) -> None:
        records = []
        for k, sample in enumerate(samples):
            t = camera_moment(channel, k).t
            picture = take_picture(self.scene, channel, t, k)
            self.seen[k] += picture.seen
            self.alone[k] += picture.alone
            record = self._recording(channel, t, sample, True, "jpg", self.settings.image_size)
            Image.fromarray(picture.image).save(self.root / record["filename"], quality=JPEG_QUALITY, subsampling=0)
            records.append(record)
        self.tables["sample_data"] += _chained(records)

    def _annotations(self, index: int, samples: list[str]) -> None:
        thing = self.scene.things[index]
        kind = KINDS[CLASSES[thing.label]]
        instance = token("instance", self.settings.seed, self.name, index)
        records = _chained(self._annotation(thing, index, instance, k, sample) for k, sample in enumerate(samples))
        self.tables["sample_annotation"] += records
        self.tables["instance"].append(
            {
                "token": instance,
                "category_token": token("category", kind.category),
                "nbr_annotations": len(records),
                "first_annotation_token": records[0]["token"],
                "last_annotation_token": records[-1]["token"],
            }
        )

    def _annotation(self, thing: Thing, index: int, instance: str, k: int, sample: str) -> Record:
        kind = KINDS[CLASSES[thing.label]]
        attribute = kind.moving if thing.speed else kind.still
        x, y, z, length, width, height, yaw = thing.box(k * KEY_INTERVAL - self.scene.drive.middle)
        return {
            "token": token("sample_annotation", self.settings.seed, self.name, index, k),
            "sample_token": sample,
            "instance_token": instance,
            "visibility_token": visibility(int(self.seen[k, index]), int(self.alone[k, index])),
            "attribute_tokens": [token("attribute", attribute)] if attribute else [],
            "translation": [x, y, z],
            "size": [width, length, height],
            "rotation": upright(yaw),
            "num_lidar_pts": self.returns[k][index],
            "num_radar_pts": 0,
        }


def _chained(records: Iterable[Record]) -> list[Record]:
    """The records with `prev` and `next` filled in."""
    listed = list(records)
    for before, record, after in zip([None, *listed[:-1]], listed, [*listed[1:], None], strict=True):
        record["prev"] = before["token"] if before else ""
        record["next"] = after["token"] if after else ""
    return listed
