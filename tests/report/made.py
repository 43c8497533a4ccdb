"""A mask made by hand: three branches, one without prunable weights, and a layer that loses everything."""

from __future__ import annotations

import torch

from fastalter.altermoma.arena import Layout
from fastalter.masks import Mask

SIZES = [
    ("cam.conv.weight", [8, 4], "camera", 32),
    ("cam.out.weight", [4, 4], "camera", 0),
    ("fuse.weight", [2, 8], "fusion", 4),
]
METADATA = {
    "method": "altermoma",
    "model": "toy [bold]",
    "data": "example",
    "synthetic": True,
    "seed": 3,
    "branches": {
        "camera": {"parameters": 60, "prunable": 48},
        "lidar": {"parameters": 5, "prunable": 0},
        "fusion": {"parameters": 17, "prunable": 16},
    },
}


def make_mask(threshold: float = 0.25) -> Mask:
    layout = Layout.from_json([[name, shape, branch] for name, shape, branch, _ in SIZES])
    kept = {name: count for name, _, _, count in SIZES}
    return Mask(torch.zeros(8, dtype=torch.uint8), layout, kept, ratio=0.4375, threshold=threshold, metadata={})
