"""The specification: every op in plain torch, for any device, as close to its sentence in the design as it will go.

The fast implementations are held against these functions, and these against float64 oracles. They trade nothing for
speed.
"""

from fastalter.ops.reference.compaction import compact_channels, compress_nm, pack_sparse, unpack_sparse
from fastalter.ops.reference.fuse import (
    masked_fuse,
    masked_fuse_grad,
    masked_fuse_norm,
    masked_fuse_norm_backward,
    masked_fuse_sums,
)
from fastalter.ops.reference.masked import (
    masked_conv2d,
    masked_conv2d_dgrad,
    masked_conv2d_wgrad,
    masked_linear,
    masked_linear_dgrad,
    masked_linear_wgrad,
)
from fastalter.ops.reference.scoring import (
    HISTOGRAM_BINS,
    alter_score,
    apply_mask,
    channel_sum,
    indicator_sums,
    kth_value,
    make_mask,
    top_digit,
)

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
    "masked_conv2d_dgrad",
    "masked_conv2d_wgrad",
    "masked_fuse",
    "masked_fuse_grad",
    "masked_fuse_norm",
    "masked_fuse_norm_backward",
    "masked_fuse_sums",
    "masked_linear",
    "masked_linear_dgrad",
    "masked_linear_wgrad",
    "pack_sparse",
    "top_digit",
    "unpack_sparse",
]
