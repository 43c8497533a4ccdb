"""Floating-point operations of a forward pass by module: two per multiply-accumulate of every matrix product.

torch's FlopCounterMode counts dense convolutions, matrix products and attention; sparse convolutions, whose kernels it
cannot see, are counted from the sites they connect. Norms, activations, pooling and resampling are not counted, as is
usual.

Three kinds: "dense" are products with a weight, "sparse" those of sparse convolutions, and "attention" are batched
products of two activations, which channels alone do not say the cost of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastalter.fusion.weights import is_sparse_conv
from fastalter.profiling.sparse import sparse_flops

KINDS = ("dense", "attention", "sparse")
_BATCHED = ("bmm", "baddbmm", "_scaled_dot_product")


def count_flops(model: nn.Module, run: Callable[[], Any]) -> Counter[str]:
    """FLOPs of `run`, which calls the model: path of each module -> those of it and all below; "" is the whole.

    A module that is called under two paths counts under both; what runs outside of any module counts in "" alone.
    """
    return sum(count_kinds(model, run).values(), Counter())


def count_kinds(model: nn.Module, run: Callable[[], Any]) -> dict[str, Counter[str]]:
    """What `count_flops` counts, by kind: one of KINDS -> path -> FLOPs."""
    counter = FlopCounterMode(display=False)
    sparse: Counter[str] = Counter()
    with _counting_sparse(model, sparse), _in_plain_products(), counter, torch.no_grad():
        run()
    flops = _by_path(counter, type(model).__name__)
    for path, own in sparse.items():
        seen = {kind: flops[kind][path] for kind in KINDS}  # some algorithms call dense products
        for above in _and_above(path):
            for kind in KINDS:
                flops[kind][above] -= seen[kind]
            flops["sparse"][above] += own
    return flops


def _by_path(counter: FlopCounterMode, root: str) -> dict[str, Counter[str]]:
    """The counter's numbers by kind and the module paths of the model, whose own name it puts before each."""
    flops: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for name, ops in counter.get_flop_counts().items():
        if name == "Global" or name.startswith(f"{root}."):
            path = "" if name == "Global" else name.removeprefix(f"{root}.")
            for op, count in ops.items():
                flops[_kind(str(op))][path] += count
    return flops


def _kind(op: str) -> str:
    """Of an operation's name, such as aten.bmm."""
    return "attention" if op.rpartition(".")[2].startswith(_BATCHED) else "dense"


def _and_above(path: str) -> list[str]:
    """The path itself and those of the modules around it, "" last."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts), -1, -1)]


@contextmanager
def _counting_sparse(model: nn.Module, flops: Counter[str]) -> Iterator[None]:
    """Add every sparse convolution's operations under its own path."""

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            flops[path] += sparse_flops(module, inputs[0], output)

        return count

    handles = [
        module.register_forward_hook(hook(path)) for path, module in model.named_modules() if is_sparse_conv(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _in_plain_products() -> Iterator[None]:
    """Fused attention, of nn.MultiheadAttention's fast path or of a CPU kernel, is invisible to the counter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
