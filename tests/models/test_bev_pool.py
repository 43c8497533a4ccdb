"""The splat against the definition, its gradients against finite differences, and its reruns bit by bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastalter.models import bev_pool as module
from fastalter.models.bev_pool import bev_pool

CELLS = 12


def rays(pixels: int = 9, bins: int = 5, channels: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    depth = torch.rand(pixels, bins, generator=generator, dtype=dtype)
    features = torch.randn(pixels, channels, generator=generator, dtype=dtype)
    cells = torch.randint(0, CELLS + 1, (pixels, bins), generator=generator)
    return depth, features, cells


def definition(depth: Tensor, features: Tensor, cells: Tensor) -> Tensor:
    out = torch.zeros(CELLS + 1, features.shape[1], dtype=features.dtype)
    for pixel in range(len(depth)):
        for k in range(depth.shape[1]):
            out[cells[pixel, k]] += depth[pixel, k] * features[pixel]
    return out[:CELLS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_every_ray_point_into_its_cell(dtype: torch.dtype) -> None:
    depth, features, cells = rays(dtype=dtype)
    pooled = bev_pool(depth, features, cells, CELLS)
    torch.testing.assert_close(pooled, definition(depth, features, cells))
    assert pooled.dtype == dtype


@pytest.mark.parametrize("block", [1, 4, 512])
def test_gradients_equal_finite_differences(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIXELS_PER_BLOCK", block)
    depth, features, cells = rays()
    inputs = (depth.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradcheck(lambda d, f: bev_pool(d, f, cells, CELLS), inputs)


def test_rays_outside_the_grid_leave_zeros_and_get_no_gradient() -> None:
    depth, features, cells = rays()
    depth.requires_grad_()
    pooled = bev_pool(depth, features, torch.full_like(cells, CELLS), CELLS)
    assert torch.equal(pooled, torch.zeros(CELLS, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(pooled.sum(), depth)
    assert not gradient.any()


def test_reruns_and_thread_counts_are_bitwise_equal() -> None:
    depth, features, cells = rays(pixels=4000, bins=20, channels=8, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            d, f = depth.clone().requires_grad_(), features.clone().requires_grad_()
            pooled = bev_pool(d, f, cells, CELLS)
            results.append((pooled.detach(), *torch.autograd.grad(pooled.square().sum(), (d, f))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
