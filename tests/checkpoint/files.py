"""Checkpoint files for the tests, made here: pickles by hand, state dicts of the tiny model in every layout."""

from __future__ import annotations

import json
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MANIFESTS = Path(__file__).parents[1] / "manifests"
MIT = "mit_bevfusion_det_swint_v0p075.json"
RESNET = "mit_bevfusion_det_resnet101_second_v0p1.json"
MMDET3D = "mmdet3d_bevfusion_lidar_cam.json"
FROM_NATIVE = {"spconv1": (1, 2, 3, 4, 0), "spconv2.1": (1, 2, 3, 0, 4), "spconv2": (0, 1, 2, 3, 4)}


def key_map() -> dict[str, str]:
    """mmdetection3d's key -> MIT's key, in file order, as recorded from the upstream programs."""
    entries = json.loads((MANIFESTS / "map_mmdet3d_to_mit.json").read_text())["map"]
    return {key: entry["mit_key"] for key, entry in entries.items()}


def manifest_state(name: str) -> dict[str, Tensor]:
    """The tensors a manifest lists, without memory; the view transform's constants with the values of the config."""
    content = json.loads((MANIFESTS / name).read_text())
    state = {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in content["tensors"].items()
    }
    geometry = published_geometry(51.2, 0.4) if name == RESNET else published_geometry()
    for key in state:
        if key.rsplit(".", 1)[-1] in geometry:
            state[key] = geometry[key.rsplit(".", 1)[-1]]
    return state


def published_geometry(reach: float = 54.0, cell: float = 0.3) -> dict[str, Tensor]:
    """Written from the published config: 256x704 images in cells of 8, depths 1 to 60 m in 0.5 m, +-reach in cells."""
    depth, y, x = torch.meshgrid(
        torch.arange(1.0, 60.0, 0.5), torch.linspace(0, 255, 32), torch.linspace(0, 703, 88), indexing="ij"
    )
    return {
        "dx": torch.tensor([cell, cell, 20.0]),
        "bx": torch.tensor([-reach + cell / 2, -reach + cell / 2, 0.0]),
        "nx": torch.tensor([round(2 * reach / cell), round(2 * reach / cell), 1]),
        "frustum": torch.stack([x, y, depth], -1),
    }


def in_layout(state: dict[str, Tensor], family: str, sparse: str, prefix: str = "") -> OrderedDict[str, Tensor]:
    """A model's state dict as a file of this family and sparse layout holds it."""
    theirs = {ours: key for key, ours in key_map().items()}
    result: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        stored = value.permute(FROM_NATIVE[sparse]).contiguous() if value.dim() == 5 else value.clone()
        result[prefix + (theirs[key] if family == "mmdet3d" else key)] = stored
    return result


def pickled_by(module: str, name: str, make: Callable[[type], Any]) -> Any:
    """An object of a class that exists while it is pickled and is gone when it is read; call within `absent`."""
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(".".join(parts[: i + 1])))
    kind = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, kind)
    return make(kind)


def forget(module: str) -> None:
    """Remove what `pickled_by` put up."""
    root = module.split(".")[0]
    for loaded in [m for m in sys.modules if m == root or m.startswith(root + ".")]:
        del sys.modules[loaded]


def reduce_pickle(module: str, name: str, argument: str, protocol: int = 2) -> bytes:
    """A pickle that would call module.name(argument), spelled opcode by opcode."""
    if protocol < 4:
        return b"\x80\x02" + f"c{module}\n{name}\nX".encode() + _text(argument) + b"\x85R."
    body = b"\x80\x04X" + _text(module) + b"X" + _text(name) + b"\x93X" + _text(argument) + b"\x85R."
    return body


def _text(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(4, "little") + raw


class Calls:
    """Pickles as a call of `function` with `arguments`, as attacks do."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments
