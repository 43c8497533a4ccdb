"""A made-up nuScenes dataset of a few samples that the official devkit loads, and what is true in it.

The ego vehicle drives and turns through a world of landmarks that stand still. Every scan holds them first, with their
number as intensity; every image shows those in front of its camera as bright dots on dark noise, painted where the
camera's own pose at the image's own time puts them. So a loader that gets any pose, time or calibration wrong puts
points where there is no dot, and scans where the landmarks do not meet.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyquaternion import Quaternion

CAMERA_HEADINGS = {
    "CAM_FRONT": 0.0,
    "CAM_FRONT_RIGHT": -55.0,
    "CAM_FRONT_LEFT": 55.0,
    "CAM_BACK": 180.0,
    "CAM_BACK_LEFT": 110.0,
    "CAM_BACK_RIGHT": -110.0,
}
IMAGE_SIZE = (180, 320)
LANDMARKS = 16
CLOSE_POINTS = 5
CLUTTER = 200
SAMPLES = 3
SCANS_PER_SAMPLE = 4
START = 1_500_000_000_000_000
KEY_STEP = 500_000
SCAN_STEP = KEY_STEP // SCANS_PER_SAMPLE


@dataclass(frozen=True)
class Thing:
    """An annotated object: category, size (w, l, h), global position and velocity, yaw, points, samples it is in."""

    category: str
    size: tuple[float, float, float]
    position: tuple[float, float, float]
    velocity: tuple[float, float]
    yaw: float
    points: int
    samples: tuple[int, ...]


THINGS = (
    Thing("vehicle.car", (1.9, 4.6, 1.7), (112.0, 205.0, 1.0), (2.0, 1.0), 0.7, 12, (0, 1, 2)),
    Thing("human.pedestrian.adult", (0.7, 0.6, 1.8), (95.0, 194.0, 1.1), (0.0, 0.0), -2.0, 3, (1,)),
    Thing("movable_object.barrier", (2.5, 0.5, 1.0), (104.0, 190.0, 0.6), (0.0, 0.0), 1.2, 0, (0, 1, 2)),
    Thing("animal", (0.4, 0.9, 0.5), (108.0, 196.0, 0.4), (0.0, 0.0), 0.1, 4, (0, 1, 2)),
    Thing("vehicle.truck", (2.5, 7.0, 3.0), (190.0, 290.0, 1.6), (0.0, 0.0), 0.3, 2, (0, 1, 2)),
)


def write_tiny_nuscenes(root: Path, version: str = "v1.0-mini", scene: str = "scene-9001") -> None:
    """Write tables, maps, images and scans under `root`, and the same frames as info.json in mmdetection3d's layout."""
    writer = _Writer(root, scene)
    writer.write()
    folder = root / version
    folder.mkdir(parents=True)
    for name, records in writer.tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
    categories = {"car": 0, "truck": 1, "pedestrian": 7, "barrier": 9}
    (root / "info.json").write_text(json.dumps({"metainfo": {"categories": categories}, "data_list": writer.infos}))


def ego_to_global(stamp: int) -> np.ndarray:
    """[4, 4] pose of the ego vehicle at a time stamp (microseconds)."""
    t = (stamp - START) * 1e-6
    return _pose(Quaternion(axis=(0, 0, 1), angle=0.3 + 0.4 * t), (100 + 5 * t, 200 + 2 * t, 0.2))


def lidar_to_ego() -> np.ndarray:
    """The LiDAR looks along +y, a little tilted, as on the real car."""
    turn = Quaternion(axis=(0, 0, 1), angle=-math.pi / 2) * Quaternion(axis=(1, 0, 0), angle=0.02)
    return _pose(turn, (0.94, 0.0, 1.84))


def camera_to_ego(name: str) -> np.ndarray:
    heading = math.radians(CAMERA_HEADINGS[name])
    forward, right = (math.cos(heading), math.sin(heading), 0.0), (math.sin(heading), -math.cos(heading), 0.0)
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([right, (0.0, 0.0, -1.0), forward])
    matrix[:3, 3] = (1.0 * forward[0], 0.5 * forward[1], 1.5)
    return matrix


def intrinsics() -> np.ndarray:
    return np.array([[250.0, 0.0, 162.0], [0.0, 255.0, 85.0], [0.0, 0.0, 1.0]])


def camera_stamp(sample: int, name: str) -> int:
    """Cameras fire up to 40 ms before the key scan, each at its own time."""
    return START + sample * KEY_STEP - 8_000 * list(CAMERA_HEADINGS).index(name)


def landmarks() -> np.ndarray:
    """[LANDMARKS, 3] global positions, all around the vehicle."""
    angle = np.linspace(0, 2 * math.pi, LANDMARKS, endpoint=False) + 0.1
    radius = np.where(np.arange(LANDMARKS) % 2, 14.0, 20.0)
    height = 1.0 + 0.6 * (np.arange(LANDMARKS) % 3)
    return np.column_stack([102 + radius * np.cos(angle), 201 + radius * np.sin(angle), height])


def move(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points [P, 3] through a [4, 4] matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


class _Writer:
    def __init__(self, root: Path, scene: str) -> None:
        self.root, self.scene = root, scene
        self.rng = np.random.default_rng(0)
        self.tables: dict[str, list[dict[str, Any]]] = {"sample_data": [], "ego_pose": [], "sample_annotation": []}
        self.infos: list[dict[str, Any]] = []

    def write(self) -> None:
        self._fixed_tables()
        (self.root / "maps").mkdir(parents=True)
        Image.new("L", (8, 8)).save(self.root / "maps" / "tiny.png")
        scans = [self._scan(number) for number in range((SAMPLES - 1) * SCANS_PER_SAMPLE + 1)]
        self._chain(scans)
        for name in CAMERA_HEADINGS:
            self._chain([self._image(sample, name) for sample in range(SAMPLES)])
        self._annotations()
        self.infos = [self._info(sample, scans) for sample in range(SAMPLES)]

    def _fixed_tables(self) -> None:
        tables = self.tables
        categories = sorted({thing.category for thing in THINGS})
        tables["category"] = [{"token": f"category-{n}", "name": n, "description": ""} for n in categories]
        tables["attribute"] = [{"token": "attribute-0", "name": "vehicle.moving", "description": ""}]
        tables["visibility"] = [{"token": "4", "level": "v80-100", "description": ""}]
        tables["log"] = [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "nowhere"}]
        tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "", "filename": "maps/tiny.png"}]
        tables["sensor"] = [
            {"token": f"sensor-{name}", "channel": name, "modality": "lidar" if name == "LIDAR_TOP" else "camera"}
            for name in ("LIDAR_TOP", *CAMERA_HEADINGS)
        ]
        tables["calibrated_sensor"] = [
            {
                "token": f"calibrated-{name}",
                "sensor_token": f"sensor-{name}",
                "camera_intrinsic": [] if name == "LIDAR_TOP" else intrinsics().tolist(),
                **_record(lidar_to_ego() if name == "LIDAR_TOP" else camera_to_ego(name)),
            }
            for name in ("LIDAR_TOP", *CAMERA_HEADINGS)
        ]
        tables["scene"] = [
            {
                "token": "scene",
                "log_token": "log",
                "name": self.scene,
                "description": "",
                "nbr_samples": SAMPLES,
                "first_sample_token": "sample-0",
                "last_sample_token": f"sample-{SAMPLES - 1}",
            }
        ]
        tables["sample"] = [
            {
                "token": f"sample-{k}",
                "timestamp": START + k * KEY_STEP,
                "scene_token": "scene",
                "prev": f"sample-{k - 1}" if k else "",
                "next": f"sample-{k + 1}" if k + 1 < SAMPLES else "",
            }
            for k in range(SAMPLES)
        ]

    def _recording(self, channel: str, stamp: int, sample: int, key: bool, suffix: str) -> tuple[dict[str, Any], Path]:
        """A sample_data record with its ego pose, and the path its file belongs at."""
        name = f"{'samples' if key else 'sweeps'}/{channel}/{stamp}{suffix}"
        pose = {"token": f"pose-{channel}-{stamp}", "timestamp": stamp, **_record(ego_to_global(stamp))}
        self.tables["ego_pose"].append(pose)
        record = {
            "token": f"data-{channel}-{stamp}",
            "sample_token": f"sample-{sample}",
            "ego_pose_token": pose["token"],
            "calibrated_sensor_token": f"calibrated-{channel}",
            "timestamp": stamp,
            "filename": name,
            "is_key_frame": key,
            "fileformat": "pcd" if channel == "LIDAR_TOP" else "jpg",
        }
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        return record, self.root / name

    def _scan(self, number: int) -> dict[str, Any]:
        stamp = START + number * SCAN_STEP
        sample, rest = divmod(number, SCANS_PER_SAMPLE)
        record, path = self._recording("LIDAR_TOP", stamp, sample, rest == 0, ".pcd.bin")
        here = move(landmarks(), np.linalg.inv(ego_to_global(stamp) @ lidar_to_ego()))
        close = np.column_stack([self.rng.uniform(-0.9, 0.9, (CLOSE_POINTS, 2)), np.full(CLOSE_POINTS, -1.0)])
        radius, angle = self.rng.uniform(3, 40, CLUTTER), self.rng.uniform(-math.pi, math.pi, CLUTTER)
        height = self.rng.uniform(-1.8, 1.5, CLUTTER)
        clutter = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), height])
        xyz = np.concatenate([here, close, clutter])
        intensity = np.concatenate([np.arange(LANDMARKS), self.rng.uniform(100, 255, len(xyz) - LANDMARKS)])
        ring = self.rng.integers(0, 32, len(xyz))
        path.write_bytes(np.column_stack([xyz, intensity, ring]).astype(np.float32).tobytes())
        return record

    def _image(self, sample: int, name: str) -> dict[str, Any]:
        stamp = camera_stamp(sample, name)
        record, path = self._recording(name, stamp, sample, True, ".jpg")
        height, width = IMAGE_SIZE
        picture = self.rng.integers(0, 30, (height, width, 3))
        there = move(landmarks(), np.linalg.inv(ego_to_global(stamp) @ camera_to_ego(name)))
        seen = there[there[:, 2] > 1.0] @ intrinsics().T
        rows, columns = np.mgrid[:height, :width] + 0.5
        for u, v in seen[:, :2] / seen[:, 2:]:
            picture[np.hypot(columns - u, rows - v) < 3.0] = 255
        Image.fromarray(picture.astype(np.uint8)).save(path, quality=95)
        return record

    def _chain(self, records: list[dict[str, Any]]) -> None:
        for k, record in enumerate(records):
            record["prev"] = records[k - 1]["token"] if k else ""
            record["next"] = records[k + 1]["token"] if k + 1 < len(records) else ""
        self.tables["sample_data"] += records

    def _annotations(self) -> None:
        self.tables["instance"] = []
        for number, thing in enumerate(THINGS):
            tokens = [f"annotation-{number}-{k}" for k in thing.samples]
            self.tables["instance"].append(
                {
                    "token": f"instance-{number}",
                    "category_token": f"category-{thing.category}",
                    "nbr_annotations": len(tokens),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )
            for place, k in enumerate(thing.samples):
                self.tables["sample_annotation"].append(
                    {
                        "token": tokens[place],
                        "sample_token": f"sample-{k}",
                        "instance_token": f"instance-{number}",
                        "visibility_token": "4",
                        "attribute_tokens": [],
                        **_record(_thing_pose(thing, k)),
                        "size": thing.size,
                        "prev": tokens[place - 1] if place else "",
                        "next": tokens[place + 1] if place + 1 < len(tokens) else "",
                        "num_lidar_pts": thing.points,
                        "num_radar_pts": 0,
                    }
                )

    def _info(self, sample: int, scans: list[dict[str, Any]]) -> dict[str, Any]:
        """The frame in mmdetection3d's v1.1 info layout."""
        number = sample * SCANS_PER_SAMPLE
        stamp = scans[number]["timestamp"]
        global_to_lidar = np.linalg.inv(ego_to_global(stamp) @ lidar_to_ego())
        images = {}
        for name in CAMERA_HEADINGS:
            time = camera_stamp(sample, name)
            camera_to_lidar = global_to_lidar @ ego_to_global(time) @ camera_to_ego(name)
            images[name] = {
                "img_path": f"samples/{name}/{time}.jpg",
                "cam2img": intrinsics().tolist(),
                "lidar2cam": np.linalg.inv(camera_to_lidar).tolist(),
            }
        return {
            "token": f"sample-{sample}",
            "timestamp": stamp * 1e-6,
            "ego2global": ego_to_global(stamp).tolist(),
            "images": images,
            "lidar_points": {"lidar_path": scans[number]["filename"], "lidar2ego": lidar_to_ego().tolist()},
            "lidar_sweeps": [
                {
                    "timestamp": scan["timestamp"] * 1e-6,
                    "ego2global": ego_to_global(scan["timestamp"]).tolist(),
                    "lidar_points": {"lidar_path": scan["filename"], "lidar2ego": lidar_to_ego().tolist()},
                }
                for scan in reversed(scans[:number])
            ],
            "instances": [_instance(thing, sample, global_to_lidar) for thing in THINGS if sample in thing.samples],
        }


def _instance(thing: Thing, sample: int, global_to_lidar: np.ndarray) -> dict[str, Any]:
    labels = {"vehicle.car": 0, "vehicle.truck": 1, "human.pedestrian.adult": 7, "movable_object.barrier": 9}
    pose = global_to_lidar @ _thing_pose(thing, sample)
    width, length, height = thing.size
    velocity = (global_to_lidar[:3, :3] @ (*thing.velocity, 0.0))[:2].tolist()
    return {
        "bbox_label_3d": labels.get(thing.category, -1),
        "bbox_3d": [*pose[:3, 3], length, width, height, math.atan2(pose[1, 0], pose[0, 0])],
        "num_lidar_pts": thing.points,
        "num_radar_pts": 0,
        "velocity": velocity if len(thing.samples) > 1 else [None, None],
    }


def _thing_pose(thing: Thing, sample: int) -> np.ndarray:
    t = sample * KEY_STEP * 1e-6
    x, y, z = thing.position
    place = (x + t * thing.velocity[0], y + t * thing.velocity[1], z)
    return _pose(Quaternion(axis=(0, 0, 1), angle=thing.yaw), place)


def _pose(turn: Quaternion, translation: tuple[float, float, float]) -> np.ndarray:
    matrix: np.ndarray = turn.transformation_matrix
    matrix[:3, 3] = translation
    return matrix


def _record(pose: np.ndarray) -> dict[str, list[float]]:
    turn = Quaternion(matrix=pose[:3, :3], atol=1e-6, rtol=1e-6)
    return {"translation": pose[:3, 3].tolist(), "rotation": list(turn.elements)}
