"""The file of the parents' backbones: safetensors, and a JSON file beside it that says how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.bulk import provenance
from fastalter.artifacts import atomic_path, sha256
from recipes.tiny_checkpoint import backbones, settings

BACKBONES = Path(__file__).with_name("backbones.safetensors")


def read_backbones(path: Path = BACKBONES) -> dict[str, Tensor]:
    """State-dict name -> tensor, as `recipes.tiny_checkpoint.graft` takes them."""
    return load_file(path)


def write_backbones(work: Path, path: Path = BACKBONES) -> None:
    """Write what a fusion model takes of the parents in a work folder, and the provenance beside it."""
    with atomic_path(path) as temporary:
        save_file(backbones(work), temporary)
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(_facts(work, path), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path} and {path.with_suffix('.json').name}")


def _facts(work: Path, path: Path) -> dict[str, Any]:
    made = settings(shrink=1)
    return {
        "command": "python -m recipes.experiment.parents",
        "sha256": sha256(path),
        "trained_at_commit": (work / "commit").read_text().strip(),
        "parents": {sensor: sha256(work / f"{sensor}.pt") for sensor in ("camera", "lidar")},
        "data": made["data"],
        "batch_size": made["batch_size"],
        "training": {sensor: made["parts"][sensor] for sensor in ("camera", "lidar")},
        "written": provenance(),
    }
