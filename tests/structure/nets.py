"""A fusion network with every kind of gate, its channel groups written by hand, and gates that are real tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastalter.altermoma import Entry, Layout
from fastalter.structure.groups import FIXED, Axis, ChannelGroups, Count, Gate
from tests.altermoma.nets import seeded, small_batches

__all__ = ["GatedNet", "groups_of", "seeded", "small_batches"]

SETS = {
    "camera.stem": ("camera", 6),
    "camera.out": ("camera", 4),
    "lidar.stem": ("lidar", 4),
    "lidar.proj": ("lidar", 6),
    "lidar.out": ("lidar", 3),
    "fuser.0": ("fusion", 8),
    "qkv.heads": ("fusion", 2),
}
"""Set -> branch, groups."""


class Camera(nn.Module):
    """A residual add behind two batch norms; a convolution without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.block = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.block_norm = nn.BatchNorm2d(6)
        self.out = nn.Conv2d(6, 4, 3, padding=1)
        self.gates: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(gated(self, "camera.stem", self.stem_norm(self.stem(x))))
        x = F.relu(x + gated(self, "camera.stem", self.block_norm(self.block(x))))
        return gated(self, "camera.out", self.out(x))


class Lidar(nn.Module):
    """A grouped convolution, whose groups go whole; a layer norm behind a layer; an output channel that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.proj = nn.Linear(8, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Conv2d(6, 4, 1)
        self.gates: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(gated(self, "lidar.stem", self.stem(x), [0, 0, 1, 1, 2, 2, 3, 3]))
        x = F.relu(gated(self, "lidar.stem", self.grouped(x), [0, 0, 1, 1, 2, 2, 3, 3]))
        x = self.norm(self.proj(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = F.gelu(gated(self, "lidar.proj", x))
        return gated(self, "lidar.out", self.out(x), [0, 1, 2, FIXED])


class GatedNet(nn.Module):
    """Two sensors, a concat-then-conv fuser, attention added to what it saw, a head."""

    branches = {"camera": ["backbones.camera"], "lidar": ["backbones.lidar"]}  # noqa: RUF012
    outlets = {"camera": "backbones.camera", "lidar": "backbones.lidar"}  # noqa: RUF012
    concat_conv = "fuser.0"

    def __init__(self) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict({"camera": Camera(), "lidar": Lidar()})
        self.fuser = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.qkv = nn.Linear(8, 24)
        self.attend = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.num_heads = 2
        self.gates: dict[str, Tensor] = {}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        features = [backbone(batch[name]) for name, backbone in self.backbones.items()]
        x = gated(self, "fuser.0", self.fuser(torch.cat(features, 1)))
        x = x.relu().flatten(2).transpose(1, 2)
        parts = self.qkv(x).unflatten(2, (3, self.num_heads, 4)).permute(2, 0, 3, 1, 4)  # 3, batch, head, place, 4
        heads = gated(self, "qkv.heads", F.softmax(parts[0] @ parts[1].mT / 2, -1) @ parts[2])
        x = x + gated(self, "fuser.0", self.attend(heads.transpose(1, 2).flatten(2)), dim=2)
        return self.head(x.mean(1))  # type: ignore[no-any-return]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch), batch["label"])

    def real_gates(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Ones that multiply the channels from now on, by set."""
        gates = {name: torch.ones(size, dtype=dtype, requires_grad=True) for name, (_, size) in SETS.items()}
        for module in (self, *self.backbones.values()):
            module.gates = gates  # type: ignore[assignment]
        return gates


def gated(module: nn.Module, name: str, x: Tensor, groups: list[int] | None = None, dim: int = 1) -> Tensor:
    """x times its gates along `dim`; `groups` says which gate each position has."""
    if not module.gates:
        return x
    gate = module.gates[name]  # type: ignore[index]
    if groups is not None:
        gate = torch.cat([gate, gate.new_ones(1)])[groups]
    return x * gate.view([-1 if d == dim else 1 for d in range(x.dim())])


def groups_of(net: nn.Module) -> ChannelGroups:
    """The net's channel groups, written out."""
    entries, at, offset = [], {}, 0
    for name, (branch, size) in SETS.items():
        entries.append(Entry(f"backbones.{name}" if branch != "fusion" else name, (size,), offset, size, branch))
        at[name] = torch.arange(offset, offset + size)
        offset += size
    stem, out, fused, proj = at["camera.stem"], at["camera.out"], at["fuser.0"], at["lidar.proj"]
    pairs = at["lidar.stem"].repeat_interleave(2)
    lidar_out = torch.cat([at["lidar.out"], torch.tensor([FIXED])])
    heads = at["qkv.heads"].repeat_interleave(4)
    c, p = "backbones.camera", "backbones.lidar"
    axes = [
        *_rows(stem, f"{c}.stem.weight", *_norm(f"{c}.stem_norm"), f"{c}.block.weight", *_norm(f"{c}.block_norm")),
        *_columns(stem, f"{c}.block.weight", f"{c}.out.weight"),
        *_rows(out, f"{c}.out.weight", f"{c}.out.bias"),
        *_rows(pairs, f"{p}.stem.weight", f"{p}.stem.bias", f"{p}.grouped.weight", f"{p}.grouped.bias"),
        *_columns(pairs, f"{p}.proj.weight"),
        *_rows(proj, f"{p}.proj.weight", f"{p}.proj.bias", f"{p}.norm.weight", f"{p}.norm.bias"),
        *_columns(proj, f"{p}.out.weight"),
        *_rows(lidar_out, f"{p}.out.weight", f"{p}.out.bias"),
        *_columns(torch.cat([out, lidar_out]), "fuser.0.weight"),
        *_rows(fused, "fuser.0.weight", *_norm("fuser.1"), "attend.weight", "attend.bias"),
        *_columns(fused, "qkv.weight", "head.weight"),
        *_rows(heads.repeat(3), "qkv.weight", "qkv.bias"),
        *_columns(heads, "attend.weight"),
    ]
    state = net.state_dict()
    gates = [
        Gate(f"{c}.stem", f"{c}.stem_norm.weight", f"{c}.stem_norm.bias", 0, stem),
        Gate(f"{c}.block", f"{c}.block_norm.weight", f"{c}.block_norm.bias", 0, stem),
        Gate(f"{c}.out", f"{c}.out.weight", f"{c}.out.bias", 0, out),
        Gate(f"{p}.stem", f"{p}.stem.weight", f"{p}.stem.bias", 0, pairs),
        Gate(f"{p}.grouped", f"{p}.grouped.weight", f"{p}.grouped.bias", 0, pairs),
        Gate(f"{p}.proj", f"{p}.norm.weight", f"{p}.norm.bias", 0, proj),
        Gate(f"{p}.out", f"{p}.out.weight", f"{p}.out.bias", 0, lidar_out),
        Gate("fuser.0", "fuser.1.weight", "fuser.1.bias", 0, fused),
        Gate("attend", "attend.weight", "attend.bias", 0, fused),
        Gate("qkv", "attend.weight", None, 1, heads),
    ]
    names = list(dict.fromkeys(a.tensor for a in axes))
    weights = [name for name in names if state[name].dim() > 1]
    return ChannelGroups(
        layout=Layout(entries),
        axes=axes,
        gates=gates,
        counts=[Count(f"{p}.grouped", "groups", at["lidar.stem"]), Count("", "num_heads", at["qkv.heads"])],
        layer_norms=[f"{p}.norm"],
        shapes={name: tuple(state[name].shape) for name in names},
        buffers=[name for name in names if "running" in name],
        flops={name: 10.0 + i for i, name in enumerate(weights)},
        group_flops=torch.zeros(offset, dtype=torch.float64).index_fill_(0, at["qkv.heads"], 700.0),
    )


def _rows(groups: Tensor, *tensors: str) -> list[Axis]:
    return [Axis(name, 0, groups) for name in tensors]


def _columns(groups: Tensor, *tensors: str) -> list[Axis]:
    return [Axis(name, 1, groups) for name in tensors]


def _norm(path: str) -> list[str]:
    return [f"{path}.{last}" for last in ("weight", "bias", "running_mean", "running_var")]
