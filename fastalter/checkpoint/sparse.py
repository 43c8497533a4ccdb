"""Memory layouts of sparse-convolution weights, told apart by shape and never by a version number.

    spconv1     [k0, k1, k2, in, out]   spconv 1.x, mmcv, the published MIT files
    spconv2.1   [k0, k1, k2, out, in]   spconv 2.1, native algorithm
    spconv2     [out, k0, k1, k2, in]   spconv 2.2 and later; what the models of this package hold

No layout flips the kernel. The number of output channels is that of the batch norm behind each convolution and the
kernel is known, so one weight with in != out settles the file; where all agree with several layouts (in == out), the
file's family decides and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Size, Tensor

from fastalter.errors import CheckpointError

TO_NATIVE: dict[str, tuple[int, ...]] = {
    "spconv1": (4, 0, 1, 2, 3),
    "spconv2.1": (3, 0, 1, 2, 4),
    "spconv2": (0, 1, 2, 3, 4),
}
"""Axes that permute a weight of each layout to spconv2's."""
PREFIX = "encoders.lidar.backbone."


def inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `axes`."""
    return tuple(axes.index(i) for i in range(len(axes)))


def is_sparse_weight(key: str, tensor: Tensor) -> bool:
    """Whether a tensor of MIT's key is the weight of a sparse convolution."""
    return tensor.dim() == 5 and key.startswith(PREFIX) and key.endswith(".weight")


def _norm_key(key: str) -> str:
    """The batch norm behind a convolution: conv1 -> bn1 inside a block, 0 -> 1 in a sequence."""
    return re.sub(r"\.0\.weight$", ".1.weight", re.sub(r"\.conv(\d)\.weight$", r".bn\1.weight", key))


def _fits(shape: Size, layout: str, kernel: tuple[int, ...], out: int) -> bool:
    native = [shape[axis] for axis in TO_NATIVE[layout]]
    return tuple(native[1:4]) == kernel and native[0] == out


def decide_layout(state: Mapping[str, Tensor], usual: str) -> tuple[str, list[str]]:
    """(layout, notes) of the sparse weights of a state dict with MIT's keys; `usual` decides where shapes do not.

    Raises:
        CheckpointError: no layout explains a weight, or no single one explains them all.
    """
    possible = list(TO_NATIVE)
    first = ""
    for key, tensor in state.items():
        norm = state.get(_norm_key(key))
        if not is_sparse_weight(key, tensor) or norm is None:
            continue
        kernel = (1, 1, 3) if ".conv_out." in key else (3, 3, 3)
        fitting = [layout for layout in TO_NATIVE if _fits(tensor.shape, layout, kernel, norm.numel())]
        if not fitting:
            raise CheckpointError(
                f"{key} {list(tensor.shape)} is a {'x'.join(map(str, kernel))} sparse convolution to {norm.numel()} "
                "channels in no known layout: convert the file again from the published one"
            )
        if not set(fitting) & set(possible):
            raise CheckpointError(
                f"sparse weights in mixed layouts ({first} is {' or '.join(possible)}, {key} {' or '.join(fitting)}): "
                "convert the file again from the published one"
            )
        if len(fitting) < len(possible):
            first = key
        possible = [layout for layout in possible if layout in fitting]
    if len(possible) == 1:
        return possible[0], []
    chosen = usual if usual in possible else possible[0]
    return chosen, [f"the shapes of the sparse weights fit {' and '.join(possible)}: taken as {chosen}"]
