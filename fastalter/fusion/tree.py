"""Tensors inside whatever a module returns: lists, dicts, dataclasses, sparse convolution tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def is_sparse(value: Any) -> bool:
    """True for spconv's SparseConvTensor and its kin: features that sit on indices."""
    return hasattr(value, "replace_feature") and isinstance(getattr(value, "features", None), Tensor)


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with every tensor replaced by `function(tensor)`; of a sparse tensor, its features."""
    if isinstance(tree, Tensor):
        return function(tree)
    if is_sparse(tree):
        return tree.replace_feature(function(tree.features))
    if isinstance(tree, dict):
        items = [(key, map_tensors(value, function)) for key, value in tree.items()]
        return type(tree)(items) if type(tree).__module__ == "collections" else dict(items)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(value, function) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(value, function) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changed = {f.name: map_tensors(getattr(tree, f.name), function) for f in dataclasses.fields(tree) if f.init}
        return dataclasses.replace(tree, **changed)
    return tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a tree, in order; of a sparse tensor, its features."""
    if isinstance(tree, Tensor):
        yield tree
    elif is_sparse(tree):
        yield tree.features
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors(value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from tensors(getattr(tree, field.name))


def zeros_of(tree: Any, *, keep_integers: bool) -> Any:
    """A tree of the same shapes whose tensors are zero and take no memory (one element, expanded).

    Integers (indices, coordinates) say where features sit, not what they are: what reads a masked feature still needs
    them, and they stay where `keep_integers` is set.
    """

    def zero(tensor: Tensor) -> Tensor:
        if keep_integers and not tensor.is_floating_point():
            return tensor.detach()
        return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)

    return map_tensors(tree, zero)


def copy_of(tree: Any) -> Any:
    """A copy that a consumer may change in place; gradients flow through it to the original."""
    return map_tensors(tree, lambda tensor: tensor.clone(memory_format=_memory_format(tensor)))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    expanded = tensor.numel() > 1 and 0 in tensor.stride()
    return torch.contiguous_format if expanded else torch.preserve_format
