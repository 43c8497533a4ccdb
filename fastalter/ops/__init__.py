"""The bulk operations: one schema each (`torch.library` namespace fastalter), several implementations.

schema.py registers them; scoring, fuse, masked and compaction hold a family's schemas, fakes and typed wrappers;
reference/ is the specification; backends.py says which implementation serves which device.
"""

from fastalter.ops import schema  # noqa: F401  registers the ops
from fastalter.ops.compaction import compact_channels, compress_nm, pack_sparse, unpack_sparse
from fastalter.ops.fuse import masked_fuse, masked_fuse_norm
from fastalter.ops.masked import masked_conv2d, masked_linear
from fastalter.ops.reference import HISTOGRAM_BINS
from fastalter.ops.scoring import alter_score, apply_mask, channel_sum, indicator_sums, kth_value, make_mask

__all__ = [
    "HISTOGRAM_BINS",
    "alter_score",
    "apply_mask",
    "channel_sum",
    "compact_channels",
    "compress_nm",
    "indicator_sums",
    "kth_value",
    "make_mask",
    "masked_conv2d",
    "masked_fuse",
    "masked_fuse_norm",
    "masked_linear",
    "pack_sparse",
    "unpack_sparse",
]
