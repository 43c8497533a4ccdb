"""nuScenes through its official devkit: tables in memory, sensor files left on disk until a batch asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastalter.data.batch import CLASS_NAMES
from fastalter.data.boxes import BOX_SIZE
from fastalter.data.sample import CAMERAS, Array, Sample, Sweep, was_seen
from fastalter.errors import DataError

TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"),
    *("sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)
PREFERRED_VERSIONS = ("v1.0-trainval", "v1.0-mini")
Record = dict[str, Any]


class NuScenesFrames(Sequence[Sample]):
    """The keyframes of a version, in the order of its sample table.

    split         an official split (train, val, mini_train, ...), one of {root}/{version}/splits.json, or "all";
                  None takes every scene that is not in the official val or test split
    sweeps        how many earlier scans are added to each key scan (the published models: 9)
    keep_unseen   keep boxes without a single LiDAR or radar point (training drops them)

    Raises `DataError` when folder, version, tables or split are not there.
    """

    def __init__(
        self,
        root: Path,
        version: str | None = None,
        split: str | None = None,
        sweeps: int = 0,
        keep_unseen: bool = False,
    ) -> None:
        self.root, self.split, self.sweeps, self.keep_unseen = root, split, sweeps, keep_unseen
        if not root.is_dir():
            raise DataError(
                f"{root}: no such folder; give the nuScenes root, which holds v1.0-mini or v1.0-trainval and samples/"
            )
        self.version = version or _default_version(root)
        self._tables = _load_tables(root, self.version)
        scenes = _scenes_of(self._tables, split, root / self.version)
        self._tokens = [record["token"] for record in self._tables.sample if record["scene_token"] in scenes]
        self.description = f"nuScenes {self.version} at {root}, split {split or 'all scenes but official val and test'}"
        if not self._tokens:
            raise DataError(
                f"{root}/{self.version}: no sample in {self.description.split(', ')[-1]}; name another split as in "
                f"nuscenes:{root}:{self.version}:all"
            )

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.sample(self._tokens[index])

    @property
    def tables(self) -> Any:
        """The devkit's `NuScenes` object."""
        return self._tables

    def lidar_to_global(self, token: str) -> Array:
        """[4, 4] float64, LiDAR frame of a sample's key scan -> global frame; `DataError` for a token not there."""
        try:
            lidar = self._tables.get("sample", token)["data"]["LIDAR_TOP"]
        except KeyError as error:
            raise DataError(
                f"{self.root}/{self.version}: no sample {token} with a LIDAR_TOP keyframe; name another version"
            ) from error
        return self._sensor_to_global(self._tables.get("sample_data", lidar))

    def sample(self, token: str) -> Sample:
        """The keyframe of a sample token."""
        data = self._tables.get("sample", token)["data"]
        missing = [channel for channel in ("LIDAR_TOP", *CAMERAS) if channel not in data]
        if missing:
            raise DataError(
                f"{self.root}/{self.version}: sample {token} has no {', '.join(missing)} keyframe in sample_data"
            )
        key = self._tables.get("sample_data", data["LIDAR_TOP"])
        cameras = [self._tables.get("sample_data", data[channel]) for channel in CAMERAS]
        key_to_global = self._sensor_to_global(key)
        lidar2camera = [np.linalg.inv(self._sensor_to_global(camera)) @ key_to_global for camera in cameras]
        boxes, labels = self._boxes(token, np.linalg.inv(key_to_global))
        return Sample(
            token=token,
            images=tuple(self.root / camera["filename"] for camera in cameras),
            sweeps=tuple(self._sweeps(key, key_to_global)),
            lidar2camera=torch.from_numpy(np.stack(lidar2camera)),
            intrinsics=torch.from_numpy(np.stack([self._intrinsics(camera) for camera in cameras])),
            boxes=boxes,
            labels=labels,
        )

    def _sweeps(self, key: Record, key_to_global: Array) -> Iterator[Sweep]:
        yield Sweep(self.root / key["filename"], np.eye(4))
        earlier = key
        for _ in range(self.sweeps):
            if not earlier["prev"]:  # the scene begins here
                return
            earlier = self._tables.get("sample_data", earlier["prev"])
            to_key = np.linalg.inv(key_to_global) @ self._sensor_to_global(earlier)
            yield Sweep(self.root / earlier["filename"], to_key, 1e-6 * (key["timestamp"] - earlier["timestamp"]))

    def _sensor_to_global(self, record: Record) -> Array:
        """[4, 4] float64 of one recording: sensor -> ego -> global, at the recording's own time."""
        ego = self._tables.get("ego_pose", record["ego_pose_token"])
        sensor = self._tables.get("calibrated_sensor", record["calibrated_sensor_token"])
        return _matrix(ego) @ _matrix(sensor)

    def _intrinsics(self, record: Record) -> Array:
        matrix = np.eye(4)
        matrix[:3, :3] = self._tables.get("calibrated_sensor", record["calibrated_sensor_token"])["camera_intrinsic"]
        return matrix

    def _boxes(self, token: str, global_to_lidar: Array) -> tuple[Tensor, Tensor]:
        from nuscenes.eval.detection.utils import category_to_detection_name

        rows, labels = [], []
        for annotation_token in self._tables.get("sample", token)["anns"]:
            annotation = self._tables.get("sample_annotation", annotation_token)
            name = category_to_detection_name(annotation["category_name"])
            if name is None or not (self.keep_unseen or was_seen(annotation)):
                continue
            with np.errstate(all="ignore"):
                velocity = global_to_lidar[:3, :3] @ self._tables.box_velocity(annotation_token)
            if not np.isfinite(velocity).all():
                velocity = np.full(3, np.nan)
            pose = global_to_lidar @ _matrix(annotation)
            width, length, height = annotation["size"]
            yaw = np.arctan2(pose[1, 0], pose[0, 0])
            rows.append([*pose[:3, 3], length, width, height, yaw, *velocity[:2]])
            labels.append(CLASS_NAMES.index(name))
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, BOX_SIZE), torch.tensor(labels, dtype=torch.int64)


def _matrix(record: Record) -> Array:
    """[4, 4] float64 from a record's translation and rotation (w, x, y, z)."""
    from pyquaternion import Quaternion

    matrix: Array = Quaternion(record["rotation"]).transformation_matrix
    matrix[:3, 3] = record["translation"]
    return matrix


def _default_version(root: Path) -> str:
    versions = _versions(root)
    for name in (*PREFERRED_VERSIONS, *versions):
        if name in versions:
            return name
    raise DataError(
        f"{root}: no nuScenes tables; expected {root}/v1.0-mini or v1.0-trainval with {', '.join(TABLES)} (.json), "
        "and beside it samples/, sweeps/ and maps/"
    )


def _versions(root: Path) -> list[str]:
    return sorted(
        folder.name for folder in root.iterdir() if any((folder / f"{table}.json").is_file() for table in TABLES)
    )


def _load_tables(root: Path, version: str) -> Any:
    folder = root / version
    if not folder.is_dir():
        there = ", ".join(_versions(root)) or "none"
        raise DataError(f"{root}: no version {version!r}; versions there: {there}")
    missing = [table for table in TABLES if not (folder / f"{table}.json").is_file()]
    if missing:
        raise DataError(
            f"{folder}: missing tables {', '.join(f'{table}.json' for table in missing)}; unpack the metadata again"
        )
    try:
        from nuscenes import NuScenes
    except ImportError as error:
        raise DataError(f"{root}: nuScenes needs nuscenes-devkit ({error}); pip install nuscenes-devkit") from error
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:  # the devkit asserts, and raises bare Exception, on anything amiss in the tables
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise DataError(
            f"{folder}: nuscenes-devkit cannot load the tables ({reason}); unpack the metadata and maps again"
        ) from error


def _scenes_of(tables: Any, split: str | None, folder: Path) -> set[str]:
    """Scene tokens of a split."""
    from nuscenes.utils.splits import create_splits_scenes, get_scenes_of_split

    if split is None:
        official = create_splits_scenes()
        names = {scene["name"] for scene in tables.scene} - {*official["val"], *official["test"]}
    elif split == "all":
        names = {scene["name"] for scene in tables.scene}
    else:
        try:
            names = set(get_scenes_of_split(split, tables))
        except ValueError as error:
            known = ", ".join(["all", *create_splits_scenes()])
            raise DataError(
                f"{folder}: no split {split!r}; known: {known}, and those of {folder}/splits.json"
            ) from error
    return {scene["token"] for scene in tables.scene if scene["name"] in names}
