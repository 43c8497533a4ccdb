"""The fuser's block for all mask states, at BEVFusion's shape: 80 camera and 256 LiDAR channels into 256, 3x3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.case import Case
from bench.cases.layers import CONV, assert_close
from fastalter.ops import backends, reference


@dataclass(frozen=True)
class FuseSizes:
    """Channels of both features and of the output; side of the map."""

    first: int
    second: int
    out: int
    side: int


SMALL = FuseSizes(first=5, second=16, out=16, side=12)
FULL = FuseSizes(first=80, second=256, out=256, side=180)


class Fuser:
    """Features, weight, products, tables and gradients of the block."""

    def __init__(self, sizes: FuseSizes, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

        side = sizes.side
        self.first, self.second = draw(1, sizes.first, side, side), draw(1, sizes.second, side, side)
        width = sizes.first + sizes.second
        self.weight = draw(sizes.out, width, 3, 3) / (9 * width) ** 0.5
        self.p_first, self.p_second, *self.sums = reference.masked_fuse(self.first, self.second, self.weight, *CONV)
        rows = [torch.rand(sizes.out, generator=generator, dtype=torch.float64).to(device) for _ in range(6)]
        self.scale, self.shift = rows[:3], rows[3:]
        self.grads = [draw(1, sizes.out, side, side) for _ in range(3)]
        self.table = torch.rand(2, sizes.out, generator=generator, dtype=torch.float64).to(device)


def cases(work: Fuser) -> dict[str, Case]:
    """The case of every op, by the op's name."""
    w = work
    tables = (w.scale, w.shift, True)
    arguments: dict[str, tuple[Any, ...]] = {
        "masked_fuse": (w.first, w.second, w.weight, *CONV),
        "masked_fuse_sums": (w.p_first, w.p_second),
        "masked_fuse_grad": (w.grads[0], w.table, w.table[0], w.p_first, w.p_second),
        "masked_fuse_norm": (w.p_first, w.p_second, *tables),
        "masked_fuse_norm_backward": (w.grads[0], None, None, w.p_first, w.p_second, *tables),
    }
    peers: dict[str, Callable[[], object]] = {
        "masked_fuse": lambda: _three_convolutions(w),
        "masked_fuse_sums": lambda: [_moments(p) for p in (w.p_first + w.p_second, w.p_first, w.p_second)],
        "masked_fuse_grad": lambda: _add_sums(w),
        "masked_fuse_norm": lambda: [_norm(p, w) for p in (w.p_first + w.p_second, w.p_first, w.p_second)],
        "masked_fuse_norm_backward": lambda: _norm_backward(w),
    }
    product = w.p_first.numel() * w.p_first.element_size()
    arrays = {"masked_fuse": 0, "masked_fuse_sums": 2, "masked_fuse_grad": 4, "masked_fuse_norm": 5}
    arrays["masked_fuse_norm_backward"] = 5
    return {op: _case(op, given, peers[op], arrays[op] * product, w) for op, given in arguments.items()}


def _case(op: str, arguments: tuple[Any, ...], peer: Callable[[], object], size: int, work: Fuser) -> Case:
    run = backends.implementation(op, work.first.device)

    def check() -> None:
        expected = getattr(reference, op)(*arguments)
        found = run(*arguments)
        if op == "masked_fuse":  # its sums are of its own products, in which a bfloat16 may be rounded the other way
            expected = (*expected[:2], *reference.masked_fuse_sums(*found[:2]))
        for ours, theirs in zip(_listed(found), _listed(expected), strict=True):
            if theirs.dtype == torch.float64 and work.first.dtype != torch.float64:
                scale = float(theirs.abs().max())
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * scale)  # sums of float32 products
            else:
                assert_close(op, ours, theirs)

    return Case(lambda: run(*arguments), size, check, lambda: getattr(reference, op)(*arguments), {"torch": peer})


def _listed(found: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def _three_convolutions(w: Fuser) -> list[Tensor]:
    """What three separate passes compute: the convolution over the concatenation, the masked feature zero."""
    zero_first, zero_second = torch.zeros_like(w.first), torch.zeros_like(w.second)
    pairs = ((w.first, w.second), (w.first, zero_second), (zero_first, w.second))
    return [F.conv2d(torch.cat(pair, 1), w.weight, None, 1, 1) for pair in pairs]


def _moments(p: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(p, (0, 2, 3), correction=0)
    return mean, variance


def _row(table: Tensor, like: Tensor) -> Tensor:
    return table.to(like.dtype).view(1, -1, 1, 1)


def _add_sums(w: Fuser) -> Tensor:
    slope = _row(2 * w.table[1], w.p_first)
    return w.grads[0] + _row(w.table[0], w.p_first) + slope * w.p_first + _row(w.table[0], w.p_first) * w.p_second


def _norm(p: Tensor, w: Fuser) -> Tensor:
    return F.relu(F.batch_norm(p, None, None, w.scale[0].to(p.dtype), w.shift[0].to(p.dtype), training=True))


def _norm_backward(w: Fuser) -> tuple[Tensor, ...]:
    p = w.p_first + w.p_second
    scale = _row(w.scale[0], p)
    grad = w.grads[0] * (scale * p + _row(w.shift[0], p) > 0)
    return scale * grad, (grad * p).sum((0, 2, 3)), grad.sum((0, 2, 3))
