"""Layers whose weight is compressed: what holds it, what reads it, and when torch multiplies with it as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from fastalter import ops
from fastalter.masks.n_m import as_matrix, from_matrix
from fastalter.masks.places import Place
from fastalter.ops.reference.compaction import decompress_nm

FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that give the weights of the layers inside to a kernel of their own: it takes no semi-structured tensors."""


class Compressed(nn.Module):
    """The parametrization of a compressed weight: (values, metadata) -> the weight.

    shape       of the dense weight
    multiplies  whether the layer takes torch's semi-structured tensor where the device has the kernel
    """

    def __init__(self, shape: tuple[int, ...], multiplies: bool) -> None:
        super().__init__()
        self.shape = shape
        self.multiplies = multiplies

    def forward(self, values: Tensor, metadata: Tensor) -> Tensor:
        rows, half = values.shape
        if self.multiplies and has_kernel(values.device, values.dtype, rows, 2 * half):
            return semi_structured_tensor(values, metadata)
        return from_matrix(decompress_nm(values, metadata), self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What the weight is held as."""
        return ops.compress_nm(as_matrix(weight).contiguous())


def compress(network: nn.Module, place: Place) -> None:
    """Hold a weight compressed. It becomes two buffers, because nothing trains it: original0 and original1."""
    module, weight = place.module, place.weight.detach()
    multiplies = not _is_fused(network, place) and _swap_forward(module)
    del module._parameters[place.last]
    module.register_buffer(place.last, weight)
    held = Compressed(tuple(weight.shape), multiplies)
    # "unsafe" lets a 1x1 convolution's weight be a matrix, which it is as torch's tensor.
    parametrize.register_parametrization(module, place.last, held, unsafe=True)


def has_kernel(device: torch.device, dtype: torch.dtype, rows: int, columns: int) -> bool:
    """Whether torch multiplies by a semi-structured matrix of this kind: CUTLASS's kernels are for sm_80 to sm_89."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 8:
        return False
    least = SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS.get(dtype)
    return least is not None and rows % least.sparse_min_rows == 0 and columns % least.sparse_min_cols == 0


def semi_structured_tensor(values: Tensor, metadata: Tensor) -> Tensor:
    """torch's tensor over what `ops.compress_nm` returned; shares their memory."""
    shape = torch.Size((values.shape[0], 2 * values.shape[1]))
    tensor: Tensor = SparseSemiStructuredTensorCUTLASS(shape, values, metadata, None, None, None)
    return tensor


def _is_fused(network: nn.Module, place: Place) -> bool:
    fused = {path for path, module in network.named_modules() if isinstance(module, FUSED)}
    return any(f"{place.path}.".startswith(f"{path}." if path else "") for path in fused)


def _swap_forward(module: nn.Module) -> bool:
    """Give a layer the forward that takes a semi-structured weight, if there is one for it; whether there is."""
    if type(module) is nn.Linear:
        module.__class__ = _Linear  # as parametrize will do once more: everything else about the layer stays
        return True
    if type(module) is nn.Conv2d and _is_pointwise(module):
        module.__class__ = _Pointwise
        return True
    return False


def _is_pointwise(conv: nn.Conv2d) -> bool:
    one = conv.kernel_size == (1, 1) and conv.stride == (1, 1)
    return one and conv.groups == 1 and conv.padding in ((0, 0), "valid", "same")


class _Linear(nn.Linear):
    """A linear layer whose weight may be semi-structured: torch's product wants its input contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.contiguous(), self.weight, self.bias)


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution whose weight may be semi-structured: then a linear layer over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not isinstance(weight, SparseSemiStructuredTensorCUTLASS):
            return super().forward(x)
        rows = x.movedim(-3, -1).contiguous()  # costs nothing where channels are last
        return F.linear(rows, weight, self.bias).movedim(-1, -3)
