"""Saving 3 of docs/method.md: a convolution over concatenated branch features is a sum of one convolution per branch.

    conv(cat(C, L)) = conv_c(C) + conv_l(L) + bias

so the products P_c and P_l serve every modality mask: P_c + P_l, P_c, P_l. A masked branch's product is left out, which
halves what its zeros would cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from fastalter.fusion.adapt import FusionModel
from fastalter.fusion.stubs import Outputs, first_tensor, replaced_forwards


class SplitConv:
    """Runs `fusion.concat_conv` branch by branch. Absent or unsuitable convolutions are left alone: `active` is False.

    Products of the last recorded pass stay in `products` until `forget`.
    """

    def __init__(self, fusion: FusionModel) -> None:
        self.fusion = fusion
        self.path = fusion.concat_conv
        self.widths: dict[str, tuple[int, int]] | None = None
        self.products: dict[str, Tensor] = {}
        conv = fusion.model.get_submodule(self.path) if self.path else None
        self.conv = conv if isinstance(conv, _ConvNd) and conv.groups == 1 and not conv.transposed else None

    @property
    def active(self) -> bool:
        """Whether the split is known to equal the convolution (its input was seen to be the concatenation)."""
        return self.widths is not None

    @contextmanager
    def recording(self, record: Outputs) -> Iterator[None]:
        """A pass with nothing masked: compute and keep every branch's product."""
        self.products = {}

        def forward(x: Tensor) -> Tensor:
            if self.widths is None:
                self.widths = self._widths(record, x)
            if self.widths is None:
                return self._whole(x)
            self.products = {branch: self._product(x, branch) for branch in self.widths}
            return self._sum(list(self.products.values()))

        with self._standing_in(forward):
            yield

    @contextmanager
    def masked(self, branch: str, *, reuse: bool) -> Iterator[None]:
        """A pass with one branch masked: the sum of the other branches' products, kept ones where `reuse`."""

        def forward(x: Tensor) -> Tensor:
            if self.widths is None:
                return self._whole(x)
            others = [other for other in self.widths if other != branch]
            return self._sum([self.products[other] if reuse else self._product(x, other) for other in others])

        with self._standing_in(forward):
            yield

    def forget(self) -> None:
        """Let go of the kept products and their graphs."""
        self.products = {}

    @contextmanager
    def _standing_in(self, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
        if self.conv is None or self.path is None:
            yield
            return
        with replaced_forwards({self.path: forward}, self.fusion.model):
            yield

    def _widths(self, record: Outputs, x: Tensor) -> dict[str, tuple[int, int]] | None:
        """Channel range of each branch in the convolution's input; None unless that input is their concatenation."""
        start, widths = 0, {}
        for branch, outlet in self.fusion.outlets.items():
            feature = first_tensor(record.get(outlet, []))
            if feature is None or feature.dim() != x.dim():
                return None
            stop = start + feature.shape[1]
            if x[:, start:stop].shape != feature.shape or not torch.equal(x[:, start:stop], feature):
                return None
            widths[branch] = (start, stop)
            start = stop
        return widths if start == x.shape[1] else None

    def _product(self, x: Tensor, branch: str) -> Tensor:
        assert self.widths is not None
        start, stop = self.widths[branch]
        return self._convolve(x[:, start:stop], slice(start, stop), with_bias=False)

    def _sum(self, products: list[Tensor]) -> Tensor:
        assert self.conv is not None
        total = products[0]
        for product in products[1:]:
            total = total + product
        if self.conv.bias is None:
            return total  # a product alone is returned as it is: no later mask uses it, so its consumer may change it
        return total + self.conv.bias.reshape(1, -1, *[1] * (total.dim() - 2))

    def _whole(self, x: Tensor) -> Tensor:
        return self._convolve(x, slice(None), with_bias=True)

    def _convolve(self, x: Tensor, channels: slice, *, with_bias: bool) -> Tensor:
        conv: Any = self.conv  # _conv_forward, shared by Conv1d to Conv3d, knows padding modes; torch does not type it
        product: Tensor = conv._conv_forward(x, conv.weight[:, channels], conv.bias if with_bias else None)
        return product
