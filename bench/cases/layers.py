"""Layers whose weight is masked on load, at shapes of BEVFusion's camera backbone and decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.case import Case
from fastalter.ops import backends, reference

CONV = ([1, 1], [1, 1], [1, 1])  # stride, padding, dilation
OFFSET = 5  # of the weight's first bit: arenas are packed without gaps


@dataclass(frozen=True)
class LayerSizes:
    """tokens and width of a linear layer; batch, channels and side of a 3x3 convolution."""

    tokens: int
    width: int
    batch: int
    channels: int
    side: int


SMALL = LayerSizes(tokens=64, width=48, batch=1, channels=24, side=12)
FULL = LayerSizes(tokens=6 * 32 * 88, width=384, batch=1, channels=256, side=90)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Of the largest entry; sums over some thousand products, rounded once per product (float32) or at the end."""


class Layers:
    """Inputs, weights, a half-empty mask and output gradients of both layers."""

    def __init__(self, sizes: LayerSizes, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

        width, channels, side = sizes.width, sizes.channels, sizes.side
        self.x, self.weight, self.bias = draw(sizes.tokens, width), draw(width, width), draw(width)
        self.grad = draw(sizes.tokens, width)
        self.image, self.kernel = draw(sizes.batch, channels, side, side), draw(channels, channels, 3, 3)
        self.image_grad = draw(sizes.batch, channels, side, side)
        bits = max(self.weight.numel(), self.kernel.numel()) + OFFSET
        drawn = torch.randint(0, 256, ((bits + 7) // 8,), generator=generator)
        self.mask = drawn.to(device=device, dtype=torch.uint8)
        self.keep_weight, self.keep_kernel = (
            reference.masked.flags(self.mask, OFFSET, w.shape).to(dtype) for w in (self.weight, self.kernel)
        )


def cases(work: Layers) -> dict[str, Case]:
    """The case of every op, by the op's name."""
    w = work
    linear: dict[str, tuple[Any, ...]] = {
        "masked_linear": (w.x, w.weight, w.mask, OFFSET, w.bias),
        "masked_linear_dgrad": (w.grad, w.weight, w.mask, OFFSET),
        "masked_linear_wgrad": (w.grad, w.x, w.mask, OFFSET),
        "masked_conv2d": (w.image, w.kernel, w.mask, OFFSET, None, *CONV),
        "masked_conv2d_dgrad": (w.image_grad, w.kernel, w.mask, OFFSET, list(w.image.shape[2:]), *CONV),
        "masked_conv2d_wgrad": (w.image_grad, w.image, w.mask, OFFSET, [3, 3], *CONV),
    }
    peers: dict[str, Callable[[], object]] = {
        "masked_linear": lambda: F.linear(w.x, w.weight * w.keep_weight, w.bias),
        "masked_linear_dgrad": lambda: w.grad @ (w.weight * w.keep_weight),
        "masked_linear_wgrad": lambda: (w.grad.t() @ w.x) * w.keep_weight,
        "masked_conv2d": lambda: F.conv2d(w.image, w.kernel * w.keep_kernel, None, 1, 1),
        "masked_conv2d_dgrad": lambda: torch.nn.grad.conv2d_input(
            list(w.image.shape), w.kernel * w.keep_kernel, w.image_grad, 1, 1
        ),
        "masked_conv2d_wgrad": lambda: (
            torch.nn.grad.conv2d_weight(w.image, list(w.kernel.shape), w.image_grad, 1, 1) * w.keep_kernel
        ),
    }
    return {op: _case(op, arguments, peers[op], w.x.device) for op, arguments in linear.items()}


def _case(op: str, arguments: tuple[Any, ...], peer: Callable[[], object], device: torch.device) -> Case:
    run = backends.implementation(op, device)

    def check() -> None:
        found, expected = run(*arguments), getattr(reference, op)(*arguments)
        assert_close(op, found, expected)

    return Case(
        lambda: run(*arguments), 0, check, lambda: getattr(reference, op)(*arguments), {"torch, dense mask": peer}
    )


def assert_close(op: str, found: Tensor, expected: Tensor) -> None:
    """Within TOLERANCE of the largest entry."""
    assert found.dtype == expected.dtype, f"{op} returns {found.dtype}, the reference {expected.dtype}"
    worst = float((found.double() - expected.double()).abs().max())
    peak = float(expected.double().abs().max())
    assert peak > 0, f"{op}: nothing to compare"
    assert worst <= TOLERANCE[found.dtype] * peak, f"{op} is off by {worst / peak:.1e} of its largest entry"
