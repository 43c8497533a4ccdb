"""A zoo of small networks that a user could write, generated: one or two sensors, blocks in any order, a head.

A `Spec` is plain data that hypothesis draws and shrinks; `build` makes the network of it, the same one every time:
float64, in eval mode, with every norm's statistics, gamma and beta away from 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.structure.zoo_attention import TOKEN_BLOCKS
from tests.structure.zoo_blocks import ACTIVATIONS, BLOCKS, NORMS, Block
from tests.structure.zoo_odd import ODD_BLOCKS

KINDS: dict[str, type[Block]] = {**BLOCKS, **TOKEN_BLOCKS, **ODD_BLOCKS}
SIZE = 8

widths = st.sampled_from([4, 6, 8, 12])
small = st.sampled_from([2, 3, 4])
acts = st.sampled_from(sorted(ACTIVATIONS))
norms = st.sampled_from(sorted(NORMS))
flags = st.booleans()
strides = st.sampled_from([1, 2])
kernels = st.sampled_from([1, 3])

SETTINGS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "Plain": {"out": widths, "kernel": kernels, "stride": strides, "norm": norms, "act": acts},
    "Residual": {"out": widths, "stride": strides, "norm": norms, "act": acts},
    "PreActivation": {"hidden": widths, "act": acts},
    "Dense": {"growth": small, "layers": st.sampled_from([2, 3]), "act": acts},
    "Grouped": {"groups": small, "each": small, "act": acts},
    "Depthwise": {"expand": st.sampled_from([1, 2]), "multiplier": st.sampled_from([1, 2]), "act": acts},
    "SqueezeExcite": {"hidden": small, "linear": flags, "act": acts},
    "Inception": {"a": small, "b": small, "c": st.sampled_from([2, 4]), "act": acts},
    "Pyramid": {"deep": widths, "out": widths, "all_levels": flags, "act": acts},
    "Up": {"hidden": widths, "out": widths, "norm": norms, "act": acts},
    "Shuffle": {"groups": small, "each": st.sampled_from([2, 4]), "by_hand": flags, "act": acts},
    "PixelShuffle": {"out": widths},
    "PixelUnshuffle": {"out": widths},
    "PatchMerging": {"out": widths},
    "Gate": {
        "out": widths,
        "kind": st.sampled_from(["chunk", "split", "glu", "slice", "numbers"]),
        "kernel": kernels,
    },
    "ConvNext": {"expand": st.sampled_from([1, 2])},
    "Position": {"act": acts},
    "Shared": {"out": widths, "act": acts},
    "Product": {"out": widths, "product": flags, "act": acts},
    "Attention": {"heads": small, "head_dim": st.sampled_from([2, 4]), "fused": flags, "bias": flags},
    "SplitAttention": {"heads": small, "head_dim": st.sampled_from([2, 4])},
    "TorchAttention": {"heads": small, "other": st.sampled_from([0, 6]), "bias": flags},
    "Encoder": {"heads": small, "hidden": widths, "norm_first": flags, "gelu": flags},
    "Mlp": {"hidden": widths, "positions": flags, "scale": st.sampled_from([0.0, 1e-4]), "act": acts},
    "GatedMlp": {"hidden": widths},
    "Summary": {"heads": small},
    "AcrossChannels": {"kind": st.sampled_from(["pool", "softmax", "normalize"]), "act": acts},
    "Coordinates": {"out": widths, "act": acts},
    "CrossStage": {"half": small, "act": acts},
    "Selective": {"out": widths, "act": acts},
    "Standardised": {"out": widths, "act": acts},
    "EinsumAttention": {"heads": small, "head_dim": st.sampled_from([2, 4])},
    "TokenMixing": {"hidden": widths},
}
HEADS = ("map", "pool", "flat", "several", "joined")


@dataclass(frozen=True)
class Part:
    """A block of the network: its kind and what was drawn for it."""

    kind: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """A network: stems of these widths, one a sensor; the blocks of each; those behind the fusion; the head."""

    seed: int
    stems: tuple[int, ...]
    branches: tuple[tuple[Part, ...], ...]
    trunk: tuple[Part, ...]
    head: str


def parts(kind: str) -> st.SearchStrategy[Part]:
    """A block of this kind."""
    return st.builds(Part, kind=st.just(kind), settings=st.fixed_dictionaries(SETTINGS[kind]))


@st.composite
def specs(draw: st.DrawFn, kind: str | None = None) -> Spec:
    """Any network; with `kind`, one of one sensor with a block of that kind between two plain ones."""
    seed, head = draw(st.integers(0, 2**16)), draw(st.sampled_from(HEADS))
    if kind is not None:
        return Spec(seed, (draw(widths),), ((),), (draw(parts(kind)), draw(parts("Plain"))), head)
    any_part = st.sampled_from(sorted(SETTINGS)).flatmap(parts)
    stems = draw(st.lists(widths, min_size=1, max_size=2))
    branches = [tuple(draw(st.lists(any_part, max_size=2))) for _ in stems]
    return Spec(seed, tuple(stems), tuple(branches), tuple(draw(st.lists(any_part, min_size=1, max_size=2))), head)


class Branch(nn.Module):
    """One sensor: a stem and blocks."""

    def __init__(self, width: int, branch: tuple[Part, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks, self.gives = stack(width, SIZE, branch)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))  # type: ignore[no-any-return]


class Network(nn.Module):
    """What a spec says."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            Branch(width, branch) for width, branch in zip(spec.stems, spec.branches, strict=True)
        )
        channels, size = sum(branch.gives[0] for branch in self.branches), self.branches[0].gives[1]
        self.fuse = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.trunk, (channels, size) = stack(8, size, spec.trunk)
        self.head = spec.head
        self.out: nn.Module | None = nn.Linear(channels * size * size, 5) if spec.head == "flat" else None
        if spec.head == "pool":
            self.out = nn.Linear(channels, 5)
        if spec.head in ("map", "several"):
            self.out = nn.Conv2d(channels, 5, 1)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1) if spec.head == "several" else None
        if spec.head == "joined":
            self.out, self.boxes = nn.Linear(channels, 3), nn.Linear(8, 7)

    def forward(self, *sensors: Tensor) -> Any:
        maps = [branch(x) for branch, x in zip(self.branches, sensors, strict=True)]
        size = maps[0].shape[-2:]
        maps = [x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="nearest") for x in maps]
        fused = self.fuse(torch.cat(maps, dim=1))
        x = self.trunk(fused)
        assert self.out is not None
        if self.head == "pool":
            return self.out(x.mean(dim=(2, 3)))
        if self.head == "flat":
            return self.out(torch.flatten(x, 1))
        if self.head == "joined":
            assert self.boxes is not None
            return torch.cat([self.out(x.mean((2, 3))), self.boxes(fused.mean((2, 3)))], 1)
        if self.boxes is not None:
            return {"classes": self.out(x), "boxes": [self.boxes(x).exp()]}
        return self.out(x)


def stack(channels: int, size: int, chosen: tuple[Part, ...]) -> tuple[nn.Sequential, tuple[int, int]]:
    """(blocks in a row, what they give). A block that halves a map of less than 4 x 4 is left out."""
    blocks = nn.Sequential()
    for part in chosen:
        if part.kind == "PatchMerging" and size < 4:
            continue
        block = KINDS[part.kind](channels, size, **part.settings)
        blocks.append(block)
        channels, size = block.gives
    return blocks, (channels, size)


def build(spec: Spec, seed: int | None = None) -> tuple[Network, tuple[Tensor, ...]]:
    """(network, inputs); another seed gives another network of the same definition."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed if seed is None else seed)
        network = Network(spec).double().eval()
        with torch.no_grad():
            for module in network.modules():
                _unsettle(module)
        return network, tuple(torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64) for _ in spec.stems)


def _unsettle(module: nn.Module) -> None:
    """Norms whose gamma, beta and statistics are not those of a new network."""
    name = type(module).__name__
    if "Norm" not in name:
        return
    for last, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.is_floating_point():
            low = 0.5 if last in ("weight", "running_var") else -1.0
            tensor.uniform_(low, low + 1.5)
