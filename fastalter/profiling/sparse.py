"""Operations of sparse convolutions, counted from the sites alone: the same on every device and for every algorithm."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor


def sparse_flops(module: Any, source: Any, target: Any) -> int:
    """Two operations per pair of active sites that the kernel connects, input channel and output channel.

    source, target: the module's sparse input and output tensors (spconv). An inverse convolution connects the pairs of
    the convolution that it undoes, and has its geometry from it; a transposed one those of a convolution the other way.
    """
    geometry = source.find_indice_pair(module.indice_key) if module.inverse else module
    dilation = list(geometry.dilation)
    if module.subm:  # centred, whatever padding it was given
        stride, padding = [1] * len(dilation), [k // 2 * d for k, d in zip(module.kernel_size, dilation, strict=True)]
    else:
        stride, padding = list(geometry.stride), list(geometry.padding)
    if module.inverse or module.transposed:
        source, target = target, source
    pairs = connected_pairs(
        source.indices,
        target.indices,
        source.spatial_shape,
        kernel=module.kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    return 2 * pairs * int(module.in_channels // module.groups) * int(module.out_channels)


def connected_pairs(
    source: Tensor,
    target: Tensor,
    shape: Any,
    *,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> int:
    """How many (input site, output site, kernel position) triples of a convolution there are.

    source, target  [M, 1 + D] and [N, 1 + D] integer sites (sample, then a place on each axis), without repetition
    shape           the input's grid, D sizes
    """
    source, target = source.long(), target.long()
    sizes = torch.as_tensor(list(shape), device=source.device)
    if not len(source) or not len(target):
        return 0
    known = _keys(source, sizes)
    start = target[:, 1:] * torch.as_tensor(list(stride), device=target.device)
    start = start - torch.as_tensor(list(padding), device=target.device)
    steps = torch.as_tensor(list(dilation), device=target.device)
    pairs = 0
    for offset in itertools.product(*map(range, kernel)):
        place = start + torch.as_tensor(offset, device=target.device) * steps
        inside = ((place >= 0) & (place < sizes)).all(1)
        wanted = _keys(torch.cat([target[inside, :1], place[inside]], 1), sizes)
        pairs += int(torch.isin(wanted, known).sum())
    return pairs


def _keys(sites: Tensor, sizes: Tensor) -> Tensor:
    """One integer per site."""
    strides = [math.prod(sizes.tolist()[axis + 1 :]) for axis in range(-1, len(sizes))]
    return (sites * torch.as_tensor(strides, device=sites.device)).sum(1)
