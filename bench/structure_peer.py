"""torch-pruning's prune step beside compaction, on the dense network that it can trace.

That is camera trunk, neck, fuser and decoder, on small inputs: neither side's time depends on their size. Of a Swin
trunk torch-pruning makes a network that does not run (it loses track of the channels in patch merging), so there the
trunk is left out. Its step is importance (magnitude), one global threshold and the removal, as `pruner.step()` does
them, in place; "removal" is the part of it that cuts tensors, group by group. Ours are `compact_model` alone, and all
that makes the mask before it: magnitudes, threshold by FLOPs, compaction. Tracing is outside on both sides.
"""

from __future__ import annotations

import copy
import importlib.metadata
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.bulk import seconds
from fastalter.models.bevfusion import BEVFusion
from fastalter.models.resnet import ResNet
from fastalter.structure.arena import magnitudes
from fastalter.structure.budget import select_channels
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.grouping.find import find_groups

HINT = "torch-pruning is not installed: pip install '.[peers]'"


class DenseNetwork(nn.Module):
    """Images and the sensors' maps to the neck's and the decoder's maps; a Swin trunk is left out."""

    def __init__(self, model: BEVFusion) -> None:
        super().__init__()
        camera = cast(nn.ModuleDict, model.encoders["camera"])
        self.trunk = camera["backbone"] if isinstance(camera["backbone"], ResNet) else None
        self.neck: Any = camera["neck"]
        self.fuser: Any = model.fuser
        self.decoder: Any = model.decoder
        self.widths = model.config.camera.backbone.channels

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Images, or what the trunk would return, finest first; then the map that the fuser takes."""
        *images, fused = inputs
        features = images if self.trunk is None else self.trunk(images[0])
        return self.neck(features)[0], self.decoder["neck"](self.decoder["backbone"](self.fuser([fused])))

    def inputs(self) -> tuple[Tensor, ...]:
        """Small ones, drawn alike at every call."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, 3, 64, 96)]
        if self.trunk is None:
            shapes = [(1, width, 8 >> level, 12 >> level) for level, width in enumerate(self.widths)]
        shapes.append((1, self.fuser[0].in_channels, 16, 16))
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    def leaving(self) -> list[nn.Module]:
        """The convolutions whose channels leave the network: they keep them on both sides."""
        return [self.neck.fpn_convs[0].conv, *(block[0] for block in self.decoder["neck"].deblocks)]


def compare_with_torch_pruning(model: BEVFusion, *, ratio: float, rounds: int) -> dict[str, Any]:
    """Median seconds of both sides, what is left of the parameters, or the error in one line."""
    try:
        import torch_pruning
    except ImportError:
        return {"error": HINT}
    dense = DenseNetwork(model).eval()
    inputs = dense.inputs()
    groups = find_groups(dense, inputs)
    mask = select_channels(magnitudes(groups, dense), groups, ratio, budget="flops")
    channels = mask.metadata["reached"]["channels"]

    def prepared() -> tuple[nn.Module, Any]:
        return prepare(torch_pruning, dense, inputs, channels)

    def ours() -> None:
        compact_model(dense, select_channels(magnitudes(groups, dense), groups, ratio, budget="flops"))

    try:
        pruned, pruner = prepared()
        pruner.step()
        with torch.no_grad():
            pruned(*inputs)
        steps, removals = [], []
        for _ in range(rounds):
            steps.append(seconds(prepared()[1].step))
            removals.append(removal_seconds(prepared()[1]))
    except Exception as error:  # a peer's failure is a row
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    return {
        "version": importlib.metadata.version("torch-pruning"),
        "network": "trunk, neck, fuser, decoder" if dense.trunk else "neck, fuser, decoder",
        "parameters": [count(dense), count(compact_model(dense, mask)), count(pruned)],
        "seconds": {
            "compact_model": median(seconds(lambda: compact_model(dense, mask)) for _ in range(rounds)),
            "mask and compact_model": median(seconds(ours) for _ in range(rounds)),
            "step": median(steps),
            "removal": median(removals),
        },
    }


def prepare(torch_pruning: Any, dense: DenseNetwork, inputs: tuple[Tensor, ...], ratio: float) -> tuple[nn.Module, Any]:
    """A copy of the network, traced, and the pruner that will take `ratio` of its channels by one global threshold."""
    network = copy.deepcopy(dense)
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=network.leaving(),
    )
    return network, pruner


def removal_seconds(pruner: Any) -> float:
    """Of a step, the seconds in which tensors are cut."""
    return sum(seconds(group.prune) for group in pruner.step(interactive=True))


def count(network: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
