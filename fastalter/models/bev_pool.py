"""Splat: sum what every camera ray holds into bird's-eye-view cells, without building the ray tensor.

A pixel p with feature f_p lies on a ray of D depth bins; bin k has probability d_pk and falls into cell c_pk.
Lift-splat-shoot (Philion and Fidler, ECCV 2020) forms every product d_pk * f_p and sums by cell,

    out[c] = sum over (p, k) with c_pk = c of d_pk * f_p,

which is a sparse matrix times the features. At full size the products would take 640 MB; here they never exist. Sums
run in a fixed order on every device and thread count (no atomics), and backward only gathers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_PIXELS_PER_BLOCK = 512
"""Rays that backward gathers at a time: about 20 MB at full size, which measured fastest on two cores."""


class _BEVPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, depth: Tensor, features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
        ctx.save_for_backward(depth, features, cells)
        order, offsets = _group_by_cell(cells, num_cells)
        return F.embedding_bag(
            order // cells.shape[1], features, offsets, mode="sum", per_sample_weights=depth.flatten()[order]
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        depth, features, cells = ctx.saved_tensors
        outside = grad.new_zeros(1, grad.shape[1])
        grad = torch.cat([grad, outside])
        grad_depth, grad_features = torch.empty_like(depth), torch.empty_like(features)
        for start in range(0, len(depth), _PIXELS_PER_BLOCK):
            block = slice(start, start + _PIXELS_PER_BLOCK)
            rays = grad.index_select(0, cells[block].flatten()).view(*cells[block].shape, -1)  # [P, D, C]
            grad_depth[block] = torch.bmm(rays, features[block].unsqueeze(2)).squeeze(2)
            grad_features[block] = torch.bmm(depth[block].unsqueeze(1), rays).squeeze(1)
        return grad_depth, grad_features, None, None


def _group_by_cell(cells: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Flat indices of the ray points inside the grid, grouped by cell in ascending order; where each group starts."""
    ordered, order = torch.sort(cells.flatten().int(), stable=True)
    starts = torch.searchsorted(ordered, torch.arange(num_cells + 1, dtype=torch.int32, device=cells.device))
    return order[: starts[-1]], starts[:-1]


def bev_pool(depth: Tensor, features: Tensor, cells: Tensor, num_cells: int) -> Tensor:
    """Sum depth-weighted pixel features into cells.

    depth: [P, D] float, the weight of each depth bin on each pixel's ray. features: [P, C], same dtype. cells: [P, D]
    int64 in 0..num_cells, where `num_cells` means outside the grid. Returns [num_cells, C]; differentiable once, in
    depth and features.
    """
    pooled: Tensor = _BEVPool.apply(depth.contiguous(), features.contiguous(), cells, num_cells)
    return pooled
