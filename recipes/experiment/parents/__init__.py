"""The single-sensor backbones that the regime "at load" begins with: a file for everybody, and the command to make it.

    python -m recipes.experiment.parents

trains both parents anew where the work folder does not hold them and writes what a fusion model takes from them. The
file is in the repository because float32 training ends in other bits on another machine, and cells that were made on
several would not share their parents.
"""

from recipes.experiment.parents.backbones import BACKBONES, read_backbones, write_backbones

__all__ = ["BACKBONES", "read_backbones", "write_backbones"]
