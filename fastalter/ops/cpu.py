"""masked_fuse on the CPU: torch's convolution for the two products, the compiled library for their statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_fuse(
    first: Tensor,
    second: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `ops.masked_fuse`; the sums come from whatever serves masked_fuse_sums here."""
    width = first.shape[1]
    p_first = F.conv2d(first, weight[:, :width], None, stride, padding, dilation).contiguous()  # of channels_last too
    if second is None:
        return p_first, p_first.new_empty(0), *torch.ops.fastalter.masked_fuse_sums(p_first, None)
    p_second = F.conv2d(second, weight[:, width:], None, stride, padding, dilation).contiguous()
    return p_first, p_second, *torch.ops.fastalter.masked_fuse_sums(p_first, p_second)
