"""Training of any network: one loop, resumable bit for bit, that stops before non-finite numbers reach the weights."""

from __future__ import annotations

from fastalter.training.options import TrainOptions
from fastalter.training.trainer import Trainer, TrainResult

__all__ = ["TrainOptions", "TrainResult", "Trainer"]
