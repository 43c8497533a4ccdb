"""Saving 3 of docs/method.md: a convolution over concatenated branch features is a sum of one convolution per branch.

    conv(cat(C, L)) = conv_c(C) + conv_l(L) + bias

so the products P_c and P_l serve every modality mask: P_c + P_l, P_c, P_l. A masked branch's product is left out,
which halves what its zeros would cost. Where two branches meet, and batch norm and ReLU follow, these too are computed
for all masks at once (fuse_block.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from fastalter.errors import ScoringError
from fastalter.fusion.adapt import FusionModel
from fastalter.fusion.fuse_block import BrokenBlock, Relay, block_at
from fastalter.fusion.stubs import Outputs, first_tensor, replaced_forwards


class SplitConv:
    """Runs `fusion.concat_conv` branch by branch, with its norm and ReLU where they form a block.

    Absent or unsuitable convolutions are left alone: `active` is False. What the last recorded pass computed for every
    mask is kept until `forget`: the products by branch, or, of a block, the outputs by masked branch (None: nothing
    masked).
    """

    def __init__(self, fusion: FusionModel) -> None:
        self.fusion = fusion
        self.path = fusion.concat_conv
        self.widths: dict[str, tuple[int, int]] | None = None
        self.products: dict[str, Tensor] = {}
        self.outputs: dict[str | None, Tensor] = {}
        conv = fusion.model.get_submodule(self.path) if self.path else None
        self.conv = conv if isinstance(conv, _ConvNd) and conv.groups == 1 and not conv.transposed else None
        self.block = block_at(fusion.model, self.path) if self.path and len(fusion.outlets) == 2 else None

    @property
    def active(self) -> bool:
        """Whether the split is known to equal the convolution (its input was seen to be the concatenation)."""
        return self.widths is not None

    @contextmanager
    def recording(self, record: Outputs) -> Iterator[None]:
        """A pass with nothing masked: compute and keep what serves every mask.

        Raises:
            BrokenBlock: the modules after the convolution are not what they seemed; they run on their own from now on,
                so run the pass again.
        """
        self.forget()

        def every_mask(x: Tensor) -> Tensor:
            assert self.block is not None
            (first, inside_first), (second, inside_second) = self._known_widths(record, x).items()
            halves = (x[:, slice(*inside)] for inside in (inside_first, inside_second))
            both, only_first, only_second = self.block.every_state(*halves)
            self.outputs = {None: both, second: only_first, first: only_second}
            return both

        def every_product(x: Tensor) -> Tensor:
            if not (widths := self._known_widths(record, x)):
                return self._whole(x)
            self.products = {branch: self._product(x, branch) for branch in widths}
            return self._sum(list(self.products.values()))

        with self._standing_in(every_product, every_mask):
            yield

    @contextmanager
    def masked(self, branch: str, *, reuse: bool) -> Iterator[None]:
        """A pass with one branch masked: what the recorded pass kept for it where `reuse`, else computed from x."""

        def block_of_other(x: Tensor) -> Tensor:
            assert self.block is not None
            assert self.widths is not None
            (inside,) = (inside for other, inside in self.widths.items() if other != branch)
            return self.outputs[branch] if reuse else self.block.one_state(x[:, slice(*inside)], slice(*inside))

        def sum_of_others(x: Tensor) -> Tensor:
            if self.widths is None:
                return self._whole(x)
            others = [other for other in self.widths if other != branch]
            return self._sum([self.products[other] if reuse else self._product(x, other) for other in others])

        try:
            with self._standing_in(sum_of_others, block_of_other):
                yield
        except BrokenBlock:
            raise ScoringError(
                f"{self.path}: with {branch} masked, the modules behind this convolution run otherwise than with "
                "nothing masked; let the loss take the same way through the network in every pass, or no concat_conv"
            ) from None

    def forget(self) -> None:
        """Let go of what was kept, and its graphs."""
        self.products, self.outputs = {}, {}

    @contextmanager
    def _standing_in(self, conv: Callable[[Tensor], Tensor], block: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """`block` in place of all modules of the block, or `conv` in the convolution's place where there is none."""
        if self.conv is None or self.path is None:
            yield
        elif self.block is None:
            with replaced_forwards({self.path: conv}, self.fusion.model):
                yield
        else:
            relay = Relay(len(self.block.paths))
            after = dict.fromkeys(self.block.paths[1:], relay.pass_on)
            forwards = {self.path: lambda x: relay.start(block(self._fitting(x)))} | after
            try:
                with replaced_forwards(forwards, self.fusion.model):
                    yield
                relay.check()
            except BrokenBlock:
                self.block = None
                raise

    def _fitting(self, x: Tensor) -> Tensor:
        if self.block is None or not self.block.fits(x):
            raise BrokenBlock
        return x

    def _known_widths(self, record: Outputs, x: Tensor) -> dict[str, tuple[int, int]]:
        """The branches' channel ranges in x, found out once; empty where x is not their concatenation."""
        if self.widths is None:
            self.widths = self._widths(record, x)
        if self.widths is None and self.block is not None:
            raise BrokenBlock
        return self.widths or {}

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
