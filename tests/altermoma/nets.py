"""Small fusion networks that a user could have written, with everything that makes the seam hard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SENSORS2 = ("camera", "lidar")
SENSORS3 = ("camera", "lidar", "radar")


class Backbone(nn.Module):
    """Conv, BN, ReLU, conv; biases everywhere; ends in a convolution, so that zero weights give a zero feature."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(6, out, 3, padding=1),
        )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)  # type: ignore[no-any-return]


class SmallFusion(nn.Module):
    """Two or three sensors, a concat-then-conv fuser, a head; declares its seam as an in-tree model does."""

    def __init__(self, sensors: tuple[str, ...] = SENSORS2) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict({name: Backbone(3, 4 + i) for i, name in enumerate(sensors)})
        width = sum(4 + i for i in range(len(sensors)))
        self.fuser = nn.Sequential(
            nn.Conv2d(width, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(8, 5)
        self.branches = {name: [f"backbones.{name}"] for name in sensors}
        self.outlets = {name: f"backbones.{name}" for name in sensors}
        self.concat_conv = "fuser.0"

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        features = [backbone(batch[name]) for name, backbone in self.backbones.items()]
        return self.head(self.fuser(torch.cat(features, 1)).mean((2, 3)))  # type: ignore[no-any-return]

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self(batch)
        return {
            "loss_cls": F.cross_entropy(logits, batch["label"]),
            "loss_reg": logits.square().mean(),
            "accuracy": logits.sum(),
        }


@dataclass
class Levels:
    """What a multi-scale outlet returns: a type of the user's own."""

    fine: Tensor
    coarse: Tensor


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Pyramid(nn.Module):
    """A neck with two outlets in one dataclass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(channels, 4, 1)
        self.coarse = nn.Conv2d(channels, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Levels:
        return Levels(self.fine(x), self.coarse(x))


class UserNet(nn.Module):
    """Residual blocks, a multi-scale outlet, a parameter that both branches share, attention, an in-place consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.cam_stem = nn.Conv2d(3, 6, 3, padding=1)
        self.cam_block = Residual(6)
        self.cam_neck = Pyramid(6)
        self.pts_stem = nn.Conv2d(3, 6, 3, padding=1)
        self.pts_block = Residual(6)
        self.pts_block.conv.weight = self.cam_block.conv.weight  # shared by both sensors: counts as fusion
        self.pts_out = nn.Conv2d(6, 4, 1)
        self.mix = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, images: Tensor, points: Tensor) -> Tensor:
        levels = self.cam_neck(self.cam_block(self.cam_stem(images)))
        coarse = F.interpolate(levels.coarse, size=levels.fine.shape[-2:])
        levels.fine.mul_(0.5)  # a consumer that works in place must not spoil the record
        camera = levels.fine + coarse
        lidar = self.pts_out(self.pts_block(self.pts_stem(points)))
        tokens = torch.cat([camera, lidar], 1).flatten(2).transpose(1, 2)
        tokens = self.norm(tokens + self.mix(tokens, tokens, tokens, need_weights=False)[0])
        return self.out(tokens) * self.scale  # type: ignore[no-any-return]


USER_BRANCHES = {"camera": ["cam_stem", "cam_block", "cam_neck"], "lidar": ["pts_stem", "pts_block", "pts_out"]}
USER_OUTLETS = {"camera": "cam_neck", "lidar": "pts_out"}


def user_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    images, points, target = batch
    return F.mse_loss(model(images, points).mean(1), target)


def small_batches(
    count: int, sensors: tuple[str, ...] = SENSORS2, dtype: torch.dtype = torch.float64
) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        {
            **{name: torch.randn(3, 3, 8, 8, generator=generator, dtype=dtype) for name in sensors},
            "label": torch.randint(0, 5, (3,), generator=generator),
        }
        for _ in range(count)
    ]


def user_batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(11)
    shapes = ((2, 3, 8, 8), (2, 3, 8, 8), (2, 3))
    return [tuple(torch.randn(*s, generator=generator, dtype=dtype) for s in shapes) for _ in range(count)]  # type: ignore[misc]


def seeded(build: type[nn.Module], *args: object, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network with seeded weights and norms that are not at their trivial start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build(*args).to(dtype)
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.3)
                    module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
                    module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return net
