"""The bulk operations on arenas: one schema each (`torch.library` namespace fastalter), several implementations."""

from fastalter.ops.reference import HISTOGRAM_BINS
from fastalter.ops.schema import alter_score, apply_mask, indicator_sums, kth_value, make_mask

__all__ = ["HISTOGRAM_BINS", "alter_score", "apply_mask", "indicator_sums", "kth_value", "make_mask"]
