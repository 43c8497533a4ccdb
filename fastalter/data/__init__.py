"""Data: one `Batch` type, the loaders that make it, and the check it must pass."""

from fastalter.data.batch import CLASS_NAMES, Batch
from fastalter.data.check import check_batch
from fastalter.data.example import example_batch
from fastalter.data.loading import load, open_frames
from fastalter.data.prepare import PrepareOptions, collate, prepare
from fastalter.data.sample import Sample, Sweep
from fastalter.data.views import Batches

__all__ = [
    "CLASS_NAMES",
    "Batch",
    "Batches",
    "PrepareOptions",
    "Sample",
    "Sweep",
    "check_batch",
    "collate",
    "example_batch",
    "load",
    "open_frames",
    "prepare",
]
