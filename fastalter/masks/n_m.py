"""N:M sparsity: of every M consecutive inputs of an output, the N with the highest scores stay.

A run is M consecutive positions along the dimension that the layer sums over. Of a linear weight [O, I] these are
inputs. Of a convolution's [O, I, kh, kw] they are input channels at one output and one place of the kernel, so a run
never crosses places: that is what TensorRT checks before it takes sparse kernels (its guide's section on sparsity, for
weights K, C, R, S with C a multiple of 4), because its implicit GEMM lays activations out with channels last. As a
matrix that is [O, kh*kw*I], rows of channels last weights, and `as_matrix` makes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastalter import ops
from fastalter.altermoma.arena import Entry, Layout
from fastalter.errors import MaskError
from fastalter.fusion.weights import ATTENTION_WEIGHTS
from fastalter.masks.mask import Mask

LINEAR, ATTENTION, CONV2D = "Linear", "MultiheadAttention", "Conv2d"
KERNELS = ((1, 1), (3, 3))


def check_n_m(n_m: tuple[int, int]) -> tuple[int, int]:
    """(n, m) itself. Raises MaskError unless 1 <= n < m <= 64."""
    whole = isinstance(n_m, (tuple, list)) and len(n_m) == 2 and all(type(part) is int for part in n_m)
    if not whole or not 1 <= n_m[0] < n_m[1] <= 64:
        raise MaskError(f"n_m is {n_m!r}; give how many of how many stay, as (2, 4): whole numbers, 1 <= n < m <= 64")
    return n_m[0], n_m[1]


def layer_kind(module: nn.Module, last: str) -> str:
    """What kind of layer a weight `last` of this module belongs to: LINEAR, ATTENTION, CONV2D, or words for another."""
    if isinstance(module, nn.Linear) and last == "weight":
        return LINEAR
    if isinstance(module, nn.MultiheadAttention) and last in ATTENTION_WEIGHTS:
        return ATTENTION
    if isinstance(module, nn.Conv2d) and last == "weight":
        return CONV2D if module.groups == 1 else f"{CONV2D} of {module.groups} groups"
    name = type(module).__name__
    return name if last == "weight" else f"{last} of {name}"


def layer_kinds(model: nn.Module, layout: Layout) -> dict[str, str]:
    """Weight's name -> `layer_kind`, for every weight of the layout that the model has."""
    modules = dict(model.named_modules(remove_duplicate=False))
    split = {entry.name: entry.name.rpartition(".") for entry in layout.entries}
    return {name: layer_kind(modules[path], last) for name, (path, _, last) in split.items() if path in modules}


def why_dense(shape: tuple[int, ...], kind: str, m: int) -> str | None:
    """Why a weight takes no part in N:M; None where it does."""
    if kind not in (LINEAR, ATTENTION, CONV2D):
        return f"{kind}: linear layers, attention projections and plain 2-d convolutions take part"
    if kind == CONV2D and shape[2:] not in KERNELS:
        return f"a kernel of {'x'.join(map(str, shape[2:]))}: 1x1 and 3x3 take part"
    if shape[1] % m:
        return f"{shape[1]} inputs: no multiple of {m}"
    return None


def as_matrix(weight: Tensor) -> Tensor:
    """[O, I] as it is, [O, I, kh, kw] as [O, kh*kw*I]: rows hold what one output sums, runs are consecutive."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `as_matrix`, contiguous."""
    rows, inputs, *kernel = shape
    if math.prod(kernel) == 1:
        return matrix.view(shape)  # a permuted view would pass for contiguous, and for channels last as well
    return matrix.view(rows, *kernel, inputs).permute(0, 3, 1, 2).contiguous()


def highest_of_runs(score: Tensor, n: int, m: int) -> Tensor:
    """bool, shaped like the weight's score: the n highest of every run of m; ties go to the lower index."""
    matrix = as_matrix(score)
    order = matrix.reshape(-1, m).sort(dim=1, descending=True, stable=True).indices
    kept = torch.zeros(order.shape, dtype=torch.bool, device=score.device).scatter_(1, order[:, :n], True)
    return from_matrix(kept.view(matrix.shape), tuple(score.shape))


def select_n_m(
    score: Tensor,
    layout: Layout,
    n_m: tuple[int, int],
    kinds: Mapping[str, str],
    *,
    metadata: dict[str, Any] | None = None,
) -> Mask:
    """An N:M mask of an arena of scores [N]: n of every run of m stay where a weight takes part, all elsewhere.

    The mask's ratio is 1 - n/m, that of the weights which take part. Its metadata names "n_m" and, as "dense", the
    weights that take no part, each with the reason.

    Args:
        kinds: weight's name -> `layer_kind`: shapes alone do not tell a transposed convolution from a plain one.

    Raises:
        MaskError: n and m are no pattern, a kind is missing, scores that decide are NaN, or no weight takes part.
    """
    n, m = check_n_m(n_m)
    chosen = torch.ones_like(score)
    dense = {}
    for entry in layout.entries:
        reason = why_dense(entry.shape, _kind_of(entry, kinds), m)
        if reason is not None:
            dense[entry.name] = reason
            continue
        inside = slice(entry.offset, entry.offset + entry.size)
        if bool(score[inside].isnan().any()):
            raise MaskError(f"scores of {entry.name} hold NaN; score the model again")
        chosen[inside] = highest_of_runs(score[inside].view(entry.shape), n, m).flatten().to(score.dtype)
    if len(dense) == len(layout.entries):
        reasons = "; ".join(sorted(set(dense.values())))
        raise MaskError(f"n_m={n}:{m}: none of {len(dense)} weights can take part ({reasons}); prune by ratio instead")
    bits, counts = ops.make_mask(
        chosen,
        chosen.new_tensor(0.5),
        torch.tensor(-1, dtype=torch.int64, device=score.device),
        layout.segments().to(score.device),
    )
    kept = dict(zip((entry.name for entry in layout.entries), counts.tolist(), strict=True))
    facts = {**(metadata or {}), "n_m": [n, m], "dense": dense}
    threshold = float(score[chosen.bool()].min())
    return Mask(bits.cpu(), layout, kept, ratio=1 - n / m, threshold=threshold, metadata=facts)


def _kind_of(entry: Entry, kinds: Mapping[str, str]) -> str:
    if entry.name not in kinds:
        raise MaskError(
            f"n_m: these scores do not say what kind of layer {entry.name} is; score the weights of the model again"
        )
    return kinds[entry.name]
