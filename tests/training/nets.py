"""A small net with all that a resume can get wrong (dropout, batch norm, a frozen weight), its batches and its loss."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastalter.training import Trainer, TrainOptions


@dataclass
class Item:
    x: Tensor
    y: Tensor
    tokens: list[str] = field(default_factory=list)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(F.relu(self.norm(self.conv(x)))).mean((2, 3))) @ self.frozen  # type: ignore[no-any-return]


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net()


def items(count: int = 4) -> list[Item]:
    generator = torch.Generator().manual_seed(2)
    return [
        Item(
            torch.randn(3, 2, 6, 6, generator=generator),
            torch.randint(0, 3, (3,), generator=generator),
            [f"sample{i}-{j}" for j in range(3)],
        )
        for i in range(count)
    ]


def loss(model: nn.Module, item: Item) -> dict[str, Tensor]:
    logits = model(item.x)
    return {
        "loss_cls": F.cross_entropy(logits, item.y),
        "loss_reg": logits.square().mean(),
        "accuracy": (logits.argmax(1) == item.y).float().mean(),
    }


def options(**changes: Any) -> TrainOptions:
    return TrainOptions(**{"steps": 8, "lr": 0.05, "checkpoint_every": 2, "log_every": 3} | changes)


def trainer(model: nn.Module, folder: Path | None = None, **changes: Any) -> Trainer:
    """A trainer of `Net`; names of its own arguments are passed on, the others are options."""
    own = {name: changes.pop(name) for name in ("progress", "after_step") if name in changes}
    parts = {"loss": loss, "batches": items()} | {
        name: changes.pop(name) for name in ("loss", "batches") if name in changes
    }
    return Trainer(model, parts["loss"], parts["batches"], options(**changes), folder=folder, **own)


def rows(folder: Path) -> list[dict[str, str]]:
    """losses.csv without what a clock wrote."""
    with open(folder / "losses.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal bit for bit, all the way down."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{index}")
    else:
        assert a == b, where
