"""Single frames from a folder: info.json (mmdetection3d's v1.1 info layout as JSON), the sensor files beside it.

Boxes come from gt_boxes.json where it is there (classes named, boxes in `centre_lwh_ccw`), else from the info's
instances, whose labels follow the info's own category order and whose z is the box centre.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastalter.data.batch import CLASS_NAMES
from fastalter.data.boxes import BOX_SIZE
from fastalter.data.sample import CAMERAS, Array, Sample, Sweep, was_seen
from fastalter.errors import DataError

Record = dict[str, Any]


class FrameFolder(Sequence[Sample]):
    """The frames of a folder, in the order of info.json's data_list.

    sweeps        how many of each frame's `lidar_sweeps` are added to its key scan
    keep_unseen   keep boxes without a single LiDAR or radar point (training drops them)

    Raises `DataError` naming the file and the key when the folder is not laid out so.
    """

    def __init__(self, root: Path, sweeps: int = 0, keep_unseen: bool = False) -> None:
        self.root, self.sweeps, self.keep_unseen = root, sweeps, keep_unseen
        self._info = root / "info.json"
        if not self._info.is_file():
            raise DataError(
                f"{root}: no info.json; expected info.json, the images and .pcd.bin it names, and maybe gt_boxes.json"
            )
        info = _read_json(self._info)
        frames = info.get("data_list")
        if not isinstance(frames, list) or not frames:
            raise DataError(
                f"{self._info}: key data_list is missing or empty; expected mmdetection3d's info layout, v1.1"
            )
        self._frames: list[Record] = frames
        self._names = _names_by_label(info)
        self._boxes_file = root / "gt_boxes.json" if (root / "gt_boxes.json").is_file() else None
        if self._boxes_file and len(frames) > 1:
            raise DataError(
                f"{self._boxes_file}: describes one frame, info.json lists {len(frames)}; remove it to use instances"
            )
        self.description = f"frames of {root}"

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        frame = self._frames[index]
        try:
            return self._sample(frame, str(frame.get("token", f"{self.root.name}-{index}")))
        except KeyError as error:
            raise DataError(
                f"{self._info}: frame {index} lacks the key {error}; expected mmdetection3d's info layout"
            ) from error
        except (TypeError, ValueError, IndexError, np.linalg.LinAlgError) as error:
            raise DataError(f"{self._info}: frame {index} holds a value of the wrong form ({error})") from error

    def _sample(self, frame: Record, token: str) -> Sample:
        images = frame["images"]
        names = [name for name in CAMERAS if name in images] or list(images)
        boxes, labels = self._boxes(frame)
        return Sample(
            token=token,
            images=tuple(self.root / images[name]["img_path"] for name in names),
            sweeps=tuple(self._scans(frame, token)),
            lidar2camera=torch.from_numpy(np.stack([_matrix(images[name]["lidar2cam"]) for name in names])),
            intrinsics=torch.from_numpy(np.stack([_matrix(images[name]["cam2img"]) for name in names])),
            boxes=boxes,
            labels=labels,
        )

    def _scans(self, frame: Record, token: str) -> list[Sweep]:
        key = frame["lidar_points"]
        scans = [Sweep(self.root / key["lidar_path"], np.eye(4))]
        if self.sweeps == 0:
            return scans
        if "lidar_sweeps" not in frame:
            raise DataError(
                f"{self._info}: sample {token} has no lidar_sweeps, so {self.sweeps} cannot be added; use sweeps 0"
            )
        global_to_key = np.linalg.inv(_matrix(frame["ego2global"]) @ _matrix(key["lidar2ego"]))
        for sweep in frame["lidar_sweeps"][: self.sweeps]:
            to_key = global_to_key @ _matrix(sweep["ego2global"]) @ _matrix(sweep["lidar_points"]["lidar2ego"])
            lag = float(frame["timestamp"]) - float(sweep["timestamp"])
            scans.append(Sweep(self.root / sweep["lidar_points"]["lidar_path"], to_key, lag))
        return scans

    def _boxes(self, frame: Record) -> tuple[Tensor, Tensor]:
        if self._boxes_file:
            records = _read_json(self._boxes_file).get("boxes")
            if not isinstance(records, list):
                raise DataError(f"{self._boxes_file}: key boxes is missing; expected a list of boxes, or no such file")
            found = [(record["name"], record["centre_lwh_ccw"], record) for record in records]
        else:
            found = [(self._names.get(i["bbox_label_3d"], ""), i["bbox_3d"], i) for i in frame["instances"]]
        rows, labels = [], []
        for name, box, record in found:
            if self.keep_unseen or was_seen(record):
                if len(box) < 7:
                    raise ValueError(f"a box of {len(box)} numbers; expected x, y, z, l, w, h, yaw")
                rows.append([*(float(value) for value in box[:7]), *_velocity(record.get("velocity"))])
                labels.append(CLASS_NAMES.index(name) if name in CLASS_NAMES else -1)
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, BOX_SIZE), torch.tensor(labels, dtype=torch.int64)


def _velocity(value: Any) -> tuple[float, float]:
    """(vx, vy), both NaN where either is unknown."""
    if value is None or any(part is None or not math.isfinite(part) for part in value[:2]):
        return math.nan, math.nan
    return float(value[0]), float(value[1])


def _names_by_label(info: Record) -> dict[int, str]:
    categories = info.get("metainfo", {}).get("categories", {})
    if isinstance(categories, dict):
        return {int(label): name for name, label in categories.items()}
    return dict(enumerate(categories))


def _matrix(rows: Any) -> Array:
    """[4, 4] float64, a [3, 3] matrix padded."""
    values = np.asarray(rows, dtype=np.float64)
    if values.shape not in ((3, 3), (3, 4), (4, 4)):
        raise ValueError(f"a matrix of shape {values.shape}; expected 3x3 or 4x4")
    matrix = np.eye(4)
    matrix[: values.shape[0], : values.shape[1]] = values
    return matrix


def _read_json(path: Path) -> Record:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value
