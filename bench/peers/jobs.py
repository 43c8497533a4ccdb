"""What is to be masked: networks, and seeded scores for their prunable weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastalter import models
from fastalter.altermoma.arena import Layout
from fastalter.criteria.scores import Scores
from fastalter.fusion import Weight, adapt, default_prunable, find_weights

RATIO = 0.8
Network = tuple[nn.Module, Layout]


@dataclass(frozen=True)
class Job:
    """A network by a function that builds it with seeded weights, and whether its scores tie."""

    title: str
    build: Callable[[], Network]
    ties: bool = False

    def scores(self) -> Scores:
        """Positive float32 scores of every prunable weight, the same ones on every call."""
        layout = self.build()[1]
        draw = torch.Generator().manual_seed(0)
        flat = torch.randn(layout.size, generator=draw).mul_(torch.randn(layout.size, generator=draw)).abs_()
        flat = flat.bfloat16().float() if self.ties else distinct(flat)
        return Scores(flat, layout, {"method": "random", "seed": 0})


def distinct(values: Tensor) -> Tensor:
    """Non-negative float32 [N] in the same order, with repeated values moved up by the least: there is one top k.

    The bits of non-negative floats are ordered as the floats are, so "the next value" is an integer's next.
    """
    order = values.argsort(stable=True)
    steps = torch.arange(values.numel())
    bits = values[order].view(torch.int32).long().sub_(steps).cummax(0).values.add_(steps)
    moved = torch.empty_like(values)
    moved[order] = bits.int().view(torch.float32)
    return moved


def resnet50() -> Network:
    """torchvision's ResNet-50: 25.5 M weights of convolutions and the classifier."""
    from torchvision.models import resnet50 as build

    torch.manual_seed(0)
    return with_layout(build(weights=None))


def bevfusion() -> Network:
    """Full-size BEVFusion-mit: 39.7 M prunable weights, sparse convolutions and attention among them."""
    torch.manual_seed(0)
    fusion = adapt(models.build("bevfusion-mit-swint-voxelnet"))
    return fusion.model, Layout.of(find_weights(fusion), fusion.branch_names)


def small() -> Network:
    """A few thousand weights: for the tests, and to load every library before the first measurement."""
    torch.manual_seed(0)
    return with_layout(nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Linear(24, 101)))


def with_layout(model: nn.Module) -> Network:
    """A network of one branch."""
    weights = [
        Weight(f"{path}.{name}", parameter, "all", default_prunable(name, parameter, module), learned=True)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    return model, Layout.of(weights, ["all"])


JOBS = {
    "resnet50": Job("ResNet-50", resnet50),
    "bevfusion": Job("BEVFusion-mit", bevfusion),
    "ties": Job("ResNet-50, scores rounded to bfloat16", resnet50, ties=True),
    "small": Job("a small network", small),
    "small ties": Job("a small network, scores rounded to bfloat16", small, ties=True),
}
FULL = ("resnet50", "bevfusion", "ties")
