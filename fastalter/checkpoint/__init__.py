"""Checkpoints: read without trusting them, recognised, turned into in-tree models, written back as they came."""

from fastalter.checkpoint.compacted import save_compacted
from fastalter.checkpoint.infer import infer_config
from fastalter.checkpoint.loader import Loaded, load_checkpoint
from fastalter.checkpoint.reader import read_checkpoint
from fastalter.checkpoint.writer import save_checkpoint

__all__ = ["Loaded", "infer_config", "load_checkpoint", "read_checkpoint", "save_checkpoint", "save_compacted"]
