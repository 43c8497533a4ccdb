"""The parts of BEVFusion that are deployed as ONNX: which modules, under which names, for which shapes.

Files, inputs and outputs have the names by which NVIDIA's CUDA-BEVFusion finds them; shapes are static and the batch is
one sample, as there. What lies between the files is no ONNX: depth maps and voxels are made before, `bev_pool` works
between camera.backbone.onnx and camera.vtransform.onnx, and sparse convolutions are the LiDAR backbone's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fastalter.errors import ExportError
from fastalter.models.bevfusion import BEVFusion
from fastalter.models.transfusion_head import TransFusionHead
from fastalter.models.view_transform import DepthLSS

PARTS = ("camera", "fuser", "decoder", "head")
"""What --parts takes; fuser and decoder are one file."""
FAR = 60.0
"""Metres that a drawn depth map reaches."""
DRAWS = 8
"""Inputs that are drawn for a part whose output depends on an order, to take the clearest."""


@dataclass(frozen=True)
class OnnxPart:
    """What becomes one file.

    module      in eval mode; takes the inputs in order and returns a tensor, or a tuple of them
    reference   what the file is held against: the same in torch, the module itself where it is exported as it is
    inputs      name -> shape
    clearness   of an input: how far apart what the part sorts lies (relative); None where it sorts nothing
    """

    file: str
    module: nn.Module
    reference: nn.Module
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    clearness: Callable[[Tensor], float] | None = None

    def draw(self, seed: int) -> tuple[Tensor, ...]:
        """Random inputs: normal numbers, and depth maps of metres that are empty but for a few pixels.

        Of a part that sorts, those among DRAWS that rounding can put into another order least.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.clearness is None:
            return self._draw(generator)
        clearness = self.clearness
        return max((self._draw(generator) for _ in range(DRAWS)), key=lambda inputs: clearness(*inputs))

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(
            _depth_map(shape, generator) if name == "depth" else torch.randn(shape, generator=generator)
            for name, shape in self.inputs.items()
        )


def _depth_map(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    hit = torch.rand(shape, generator=generator) < 0.05
    return hit * FAR * torch.rand(shape, generator=generator)


class CameraNetwork(nn.Module):
    """Images and depth maps of all cameras to what `bev_pool` takes: the camera branch up to the splat."""

    def __init__(self, camera: nn.ModuleDict) -> None:
        super().__init__()
        self.camera = camera

    def forward(self, img: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """img [1, N, 3, H, W], depth [1, N, 1, H, W] in metres, 0 where unknown.

        Returns context features [N, h, w, C], channels last, and the distribution over depth bins [N, D, h, w].
        """
        features = self.camera["neck"](self.camera["backbone"](img.flatten(0, 1)))[0]
        logits, context = cast(DepthLSS, self.camera["vtransform"])._predict(features[None], depth)
        return context[0].permute(0, 2, 3, 1), logits[0].softmax(1)


class FusionNetwork(nn.Module):
    """The sensors' maps [1, C_m, X, Y], in the order of the branches, to the decoder's map."""

    def __init__(self, model: BEVFusion) -> None:
        super().__init__()
        self.fuser = model.fuser
        self.decoder = model.decoder

    def forward(self, *maps: Tensor) -> Tensor:
        fused: Tensor = self.decoder["neck"](self.decoder["backbone"](self.fuser(maps)))
        return fused


class RankedHead(TransFusionHead):
    """A head whose proposals come from ONNX's TopK, which leaves ties in order by its definition.

    `torch.topk` does not, so the head itself sorts all cells, and a sort of all cells is more than TensorRT takes.
    """

    def _top_proposals(self, peaks: Tensor) -> tuple[Tensor, Tensor]:
        order = peaks.flatten(1).topk(self.config.num_proposals, dim=1).indices
        return order // peaks.shape[2], order % peaks.shape[2]


class BoxNetwork(nn.Module):
    """The decoder's map [1, C, X, Y] to scores and box codes of P proposals."""

    outputs = ("score", "rot", "dim", "reg", "height", "vel")

    def __init__(self, head: TransFusionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, middle: Tensor) -> tuple[Tensor, ...]:
        """score [1, classes, P], 0 but in the proposal's own class; rot [1, 2, P] (sin, cos), dim [1, 3, P] log m,
        reg [1, 2, P] centre in cells, height [1, 1, P] m, vel [1, 2, P] m/s.
        """
        found = self.head(middle)
        own = nn.functional.one_hot(found["query_labels"], self.head.config.num_classes).transpose(1, 2)
        score = found["heatmap"].sigmoid() * found["query_heatmap_score"] * own
        return score, found["rot"], found["dim"], found["center"], found["height"], found["vel"]


def ranked_head(head: TransFusionHead) -> RankedHead:
    """The same head, sharing everything, with `RankedHead`'s ranking; `head` stays what it is."""
    ranked = copy.copy(head)
    ranked.__class__ = RankedHead
    return cast(RankedHead, ranked)


def _clearness(head: TransFusionHead) -> Callable[[Tensor], float]:
    """Least distance between neighbours in the ranking of peaks, relative to the highest; cells off the peaks aside."""

    @torch.no_grad()
    def measure(middle: Tensor) -> float:
        heat = head.heatmap_head(head.shared_conv(middle)).sigmoid()
        heights = head._local_maxima(heat).flatten().topk(head.config.num_proposals + 1).values
        heights = heights[heights > 0]
        return float(-heights.diff().max() / heights[0]) if len(heights) > 1 else 1.0

    return measure


def check_parts(names: tuple[str, ...] | None) -> None:
    """Raises ExportError for a name that is not one of PARTS."""
    if unknown := [name for name in names or () if name not in PARTS]:
        raise ExportError(f"there is no part {unknown[0]!r}: --parts takes {', '.join(PARTS)}, with commas between")


def onnx_parts(model: BEVFusion, names: tuple[str, ...] | None = None, cameras: int = 6) -> list[OnnxPart]:
    """What the named parts (None: all that the model has) become, in the order of PARTS; a file appears once.

    The model is put into eval mode. Shapes come from its weights, so that a compacted model's are its own.

    Raises:
        ExportError: an unknown name, or a part that the model does not have.
    """
    check_parts(names)
    there = [name for name in PARTS if name != "camera" or "camera" in model.config.sensors]
    if missing := [name for name in names or () if name not in there]:
        raise ExportError(f"{model.config.name} has no {missing[0]} part: it has {', '.join(there)}")
    model.eval()
    makers = {"camera": _camera_parts, "fuser": _fusion_parts, "decoder": _fusion_parts, "head": _head_parts}
    wanted = dict.fromkeys(makers[name] for name in there if names is None or name in names)
    return [part for make in wanted for part in make(model, cameras)]


def _camera_parts(model: BEVFusion, cameras: int) -> list[OnnxPart]:
    camera = cast(nn.ModuleDict, model.encoders["camera"])
    transform = cast(DepthLSS, camera["vtransform"])
    network, size = CameraNetwork(camera), transform.image_size
    inputs = {"img": (1, cameras, 3, *size), "depth": (1, cameras, 1, *size)}
    splat = {"feat_in": (1, transform.out_channels, *transform.grid)}
    return [
        _part("camera.backbone.onnx", network, inputs, ("camera_feature", "camera_depth_weights")),
        _part("camera.vtransform.onnx", transform.downsample, splat, ("feat_out",)),
    ]


def _fusion_parts(model: BEVFusion, cameras: int) -> list[OnnxPart]:
    return [_part("fuser.onnx", FusionNetwork(model), _map_shapes(model), ("middle",))]


def _map_shapes(model: BEVFusion) -> dict[str, tuple[int, ...]]:
    """Sensor -> shape of its map. The fuser's convolution knows the sum of the channels, the camera's its own."""
    channels = dict.fromkeys(model.config.sensors, cast(nn.Conv2d, model.fuser[0]).in_channels)
    if len(channels) > 1:
        channels["camera"] = _camera_channels(model)
        channels["lidar"] -= channels["camera"]
    return {sensor: (1, count, *model.head.grid.shape) for sensor, count in channels.items()}


def _camera_channels(model: BEVFusion) -> int:
    transform = cast(DepthLSS, cast(nn.ModuleDict, model.encoders["camera"])["vtransform"])
    smooth = [module for module in transform.downsample.modules() if isinstance(module, nn.Conv2d)]
    return smooth[-1].out_channels if smooth else transform.out_channels


def _head_parts(model: BEVFusion, cameras: int) -> list[OnnxPart]:
    head = model.head
    inputs = {"middle": (1, head.shared_conv.in_channels, *head.grid.shape)}
    ranked, sorting = BoxNetwork(ranked_head(head)), BoxNetwork(head).eval()
    return [_part("head.bbox.onnx", ranked, inputs, BoxNetwork.outputs, reference=sorting, clearness=_clearness(head))]


def _part(
    file: str,
    module: nn.Module,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: tuple[str, ...],
    *,
    reference: nn.Module | None = None,
    clearness: Callable[[Tensor], float] | None = None,
) -> OnnxPart:
    return OnnxPart(file, module.eval(), reference or module, inputs, outputs, clearness)
