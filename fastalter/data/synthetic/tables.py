"""The thirteen tables of a nuScenes dataset; those that every scene shares, and the names by which records refer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

from fastalter.data.sample import Array
from fastalter.data.synthetic.kinds import KINDS
from fastalter.data.synthetic.rig import MOUNTS, lidar_to_ego
from fastalter.data.synthetic.settings import SyntheticSettings

Record = dict[str, Any]
LIDAR = "LIDAR_TOP"
VERSION = "v1.0-synthetic"
TRAIN, VAL = "synthetic_train", "synthetic_val"
"""Names of the splits in splits.json."""
MAP_FILE = "maps/synthetic.png"
VISIBILITY = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}


def token(*parts: object) -> str:
    """32 hexadecimal digits, as nuScenes names records: a function of what the record is."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def scene_name(number: int) -> str:
    return f"synthetic-{number:05d}"


def visibility(seen: int, alone: int) -> str:
    """Token of the visible share of a thing's pixels; the lowest where no camera looks."""
    share = seen / alone if alone else 0.0
    return str(1 + sum(share > bound for bound in (0.4, 0.6, 0.8)))


def pose_record(matrix: Array) -> Record:
    """translation and rotation (w, x, y, z) of a [4, 4] matrix."""
    from pyquaternion import Quaternion

    rotation = Quaternion(matrix=matrix[:3, :3], atol=1e-6, rtol=1e-6).elements
    return {"translation": matrix[:3, 3].tolist(), "rotation": rotation.tolist()}


def upright(yaw: float) -> list[float]:
    """The quaternion (w, x, y, z) of a turn about the vertical axis."""
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def attributes() -> list[str]:
    """Names of all attributes that the classes use."""
    return sorted({name for kind in KINDS.values() for name in (kind.moving, kind.still)} - {""})


def shared_tables(settings: SyntheticSettings) -> dict[str, list[Record]]:
    """Every table that does not depend on what happens in a scene."""
    sensors = {LIDAR: (lidar_to_ego(), [])} | {
        name: (mount.to_ego(), mount.intrinsics(settings.image_size).tolist()) for name, mount in MOUNTS.items()
    }
    return {
        "category": _named("category", (kind.category for kind in KINDS.values())),
        "attribute": _named("attribute", attributes()),
        "visibility": [{"token": key, "level": level, "description": ""} for key, level in VISIBILITY.items()],
        "sensor": [
            {
                "token": token("sensor", name),
                "channel": name,
                "modality": "lidar" if name == LIDAR else "camera",
            }
            for name in sensors
        ],
        "calibrated_sensor": [
            {
                "token": token("calibrated_sensor", name),
                "sensor_token": token("sensor", name),
                **pose_record(to_ego),
                "camera_intrinsic": intrinsics,
            }
            for name, (to_ego, intrinsics) in sensors.items()
        ],
        "log": [
            {
                "token": token("log"),
                "logfile": f"synthetic-{settings.seed}",
                "vehicle": "synthetic",
                "date_captured": "2018-01-01",
                "location": "synthetic",
            }
        ],
        "map": [
            {
                "token": token("map"),
                "log_tokens": [token("log")],
                "category": "semantic_prior",
                "filename": MAP_FILE,
            }
        ],
    }


def _named(table: str, names: Iterable[str]) -> list[Record]:
    return [{"token": token(table, name), "name": name, "description": ""} for name in names]
