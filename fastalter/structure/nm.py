"""2:4 weights, compressed: half the values and two bits each for their places, as sparse tensor cores read them.

`to_semi_structured(model, mask)` gives a copy of a model that holds its 2:4 weights as `ops.compress_nm` makes them. On
a GPU whose tensor cores take them, linear layers and 1x1 convolutions multiply with them through torch's
semi-structured tensors. Everywhere else (the CPU, 3x3 convolutions, modules that read the weights of others) a weight
is decompressed when it is used: exact, and smaller in memory, but no faster. 3x3 convolutions gain in TensorRT.

float32 has a pattern of its own in that format, one of every two; a mask of (1, 2) suits every dtype.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastalter.artifacts import read_artifact, write_artifact
from fastalter.errors import MaskError
from fastalter.fusion.adapt import FusionModel
from fastalter.masks.hold import holds_in
from fastalter.masks.mask import Mask
from fastalter.masks.n_m import as_matrix, layer_kind, why_dense
from fastalter.masks.places import Place, places
from fastalter.structure.nm_layers import compress

PATTERNS = {torch.float16: (2, 4), torch.bfloat16: (2, 4), torch.float32: (1, 2)}
KIND = "semi-structured model"


@dataclass
class SemiStructured:
    """A model with compressed weights.

    model       a copy; its state dict has values and metadata in the place of every compressed weight
    compressed  names of the compressed weights
    dense       the other weights of the mask, which are masked and dense, each with the reason
    """

    model: nn.Module
    compressed: list[str]
    dense: dict[str, str]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state dict as a safetensors file, whole or not at all; `load_semi_structured` reads it."""
        state = self.model.state_dict()
        brain = [name for name, tensor in state.items() if tensor.dtype == torch.bfloat16]  # which numpy has not
        tensors = {name: tensor.view(torch.int16) if name in brain else tensor for name, tensor in state.items()}
        write_artifact(path, KIND, tensors, {"compressed": self.compressed, "dense": self.dense, "bfloat16": brain})


def to_semi_structured(model: nn.Module | FusionModel, mask: Mask) -> SemiStructured:
    """A copy of the model with the mask's zeros in it, and those weights compressed that can be.

    The copy computes what the masked model computes, with bitwise the same weights. It is for inference: compressed
    weights are buffers. See `ops.compress_nm` for the format.

    Raises:
        MaskError: the mask is of another model, or no weight can be compressed; the message gives the reasons.
    """
    network = copy.deepcopy(model.model if isinstance(model, FusionModel) else model)
    for hold in holds_in(network):
        hold.release()
    found, shared = places(network, mask), _shared(network)
    compressed, dense = [], {}
    for name, place in found.items():
        with torch.no_grad():
            place.weight.masked_fill_(~mask[name].to(place.weight.device), 0)
        reason = shared.get(id(place.weight)) or _why_dense(place, mask[name])
        if reason is None:
            compressed.append(name)
        else:
            dense[name] = reason
    if not compressed:
        reasons = "; ".join(sorted(set(dense.values())))
        raise MaskError(f"none of {len(dense)} weights can be compressed ({reasons})")
    for name in compressed:
        compress(network, found[name])
    return SemiStructured(network, compressed, dense)


def load_semi_structured(model: nn.Module, path: str | os.PathLike[str]) -> SemiStructured:
    """A copy of the model with the weights of a file that `SemiStructured.save` wrote; on the model's device.

    Args:
        model: built from the original definition, in the file's dtype; its own weights do not matter.

    Raises:
        FastalterError: no such file, or not such a file.
        MaskError: what it holds does not fit the model.
    """
    tensors, facts = read_artifact(path, KIND)
    network = copy.deepcopy(model)
    try:
        names, dense, brain = list(facts["compressed"]), dict(facts["dense"]), set(facts["bfloat16"])
        state = {name: tensor.view(torch.bfloat16) if name in brain else tensor for name, tensor in tensors.items()}
        for name in names:
            compress(network, _place(network, name))
        _check_dtypes(network.state_dict(), state)
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError, MaskError) as error:
        said = " ".join(str(error).split())
        raise MaskError(f"{path}: does not fit this model ({said}); give the model that it was made from") from error
    return SemiStructured(network, names, dense)


def _place(network: nn.Module, name: str) -> Place:
    path, _, last = name.rpartition(".")
    module = dict(network.named_modules()).get(path)
    if module is None or module._parameters.get(last) is None:
        raise MaskError(f"{name} is compressed in the file, and the model has none")
    return Place(path, module, last)


def _check_dtypes(expected: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Loading would cast, and a cast weight is another weight."""
    for name, tensor in state.items():
        if name in expected and expected[name].dtype != tensor.dtype:
            raise MaskError(f"{name} is {tensor.dtype} in the file and {expected[name].dtype} in the model")


def _shared(network: nn.Module) -> dict[int, str]:
    """id(parameter) -> why a parameter of several modules stays dense."""
    owners: dict[int, list[str]] = {}
    for path, module in network.named_modules():
        for last, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append(f"{path}.{last}".lstrip("."))
    return {key: f"shared by {' and '.join(names)}" for key, names in owners.items() if len(names) > 1}


def _why_dense(place: Place, kept: Tensor) -> str | None:
    """Why a weight cannot be compressed under its mask; None where it can."""
    weight = place.weight
    if weight.dtype not in PATTERNS:
        return f"{weight.dtype}: float16, bfloat16 and float32 can be compressed"
    reason = why_dense(tuple(weight.shape), layer_kind(place.module, place.last), 4)
    if reason is not None:
        return reason
    n, m = PATTERNS[weight.dtype]
    matrix = as_matrix(kept)
    rows, columns = matrix.shape
    multiple = 8 * m  # a pair of metadata words, of four runs each
    if rows % 32 or columns % multiple:
        return f"a matrix of {rows} x {columns}: rows must be a multiple of 32 and columns of {multiple}"
    if int(matrix.reshape(-1, m).sum(1).max()) > n:
        return f"more than {n} of {m} inputs stay and {weight.dtype} can have {n}: make the mask with n_m=({n}, {m})"
    return None
