"""fastalter: find and prune what a camera-LiDAR fusion model's sensors do twice (AlterMOMA, NeurIPS 2024).

Names load when they are first used (PEP 562), so `import fastalter` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastalter.version import __version__

if TYPE_CHECKING:
    from fastalter.altermoma import Reactivation
    from fastalter.criteria import Scores
    from fastalter.errors import FastalterError
    from fastalter.masks import Mask, Pruned, masked, prune_model
    from fastalter.scoring import score_model
    from fastalter.structure.compaction.compact import compact_model
    from fastalter.structure.compaction.plan import CompactionPlan

_HOME = {
    "CompactionPlan": "fastalter.structure.compaction.plan",
    "FastalterError": "fastalter.errors",
    "Mask": "fastalter.masks",
    "Pruned": "fastalter.masks",
    "Reactivation": "fastalter.altermoma",
    "Scores": "fastalter.criteria",
    "compact_model": "fastalter.structure.compaction.compact",
    "masked": "fastalter.masks",
    "prune_model": "fastalter.masks",
    "score_model": "fastalter.scoring",
}
_MODULES = ("checkpoint", "criteria", "data", "fusion", "masks", "models", "ops", "tasks")

__all__ = [
    "CompactionPlan",
    "FastalterError",
    "Mask",
    "Pruned",
    "Reactivation",
    "Scores",
    "__version__",
    "compact_model",
    "masked",
    "prune_model",
    "score_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"fastalter.{name}")
    raise AttributeError(f"module 'fastalter' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
