"""Calls of the ops that the CUDA library has: every layout, dtype and alignment, sizes around tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastalter.ops import reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS = ("apply_mask", "compact_channels", "pack_sparse", "unpack_sparse", "compress_nm")


@dataclass(frozen=True)
class Case:
    op: str
    name: str
    make: Callable[[torch.device], tuple[Any, ...]]  # the op's arguments


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(tensor: Tensor, by: int) -> Tensor:
    """The same elements `by` elements into a storage: contiguous, but not where an allocation starts."""
    storage = torch.zeros(by + tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    storage[by:] = tensor.flatten()
    return storage[by:].view(tensor.shape)


def sparse(size: int, dtype: torch.dtype, density: float, seed: int = 0) -> Tensor:
    """Zeros of both signs, NaN and numbers."""
    values = torch.randn(size, generator=_random(seed)).to(dtype)
    values[::7], values[3::11] = float("nan"), -0.0
    return torch.where(torch.rand(size, generator=_random(seed + 1)) < density, values, torch.zeros((), dtype=dtype))


LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, int]]] = {  # shape, gathered dims
    "OI": ((70, 93), (0, 1)),
    "OI, outputs alone": ((70, 64), (0, -1)),
    "OI, inputs alone": ((70, 93), (1, -1)),
    "OIHW": ((24, 17, 3, 3), (0, 1)),
    "OIHW, 1x1": ((64, 96, 1, 1), (0, 1)),
    "KRSC": ((13, 3, 3, 3, 33), (0, 4)),
    "RSCK": ((3, 3, 3, 18, 20), (3, 4)),
    "dims the other way round": ((12, 5, 14), (2, 0)),
    "1-D": ((517,), (0, -1)),
    "nothing gathered": ((7, 11), (-1, -1)),
    "a scalar": ((), (-1, -1)),
}


def compact_arguments(device: torch.device, dtype: torch.dtype, shift: int) -> tuple[Any, ...]:
    """All layouts in one call, kept channels in any order, one twice; one tensor that keeps nothing."""
    weights, kept, dims = [], [], []
    for seed, (shape, gathered) in enumerate(LAYOUTS.values()):
        weights.append(shifted(torch.randn(shape, generator=_random(seed)).to(dtype).to(device), shift))
        for dim in gathered:
            size = shape[dim] if dim >= 0 else 0
            index = torch.randint(max(size, 1), (size * 3 // 5,), generator=_random(seed + dim))
            kept.append(index.to(device))
            dims.append(dim)
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    weights.append(torch.ones(4, 5, dtype=dtype, device=device))
    return weights, [*kept, nothing, torch.arange(5, device=device)], [*dims, 0, 1]


def two_of_four(shape: tuple[int, int], dtype: torch.dtype, density: float) -> Tensor:
    return sparse(shape[0] * shape[1], dtype, density).view(shape)


def apply_mask_arguments(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """Odd offsets and sizes, transposed and channels-last tensors, an empty one."""
    random = torch.randn(20_000, generator=_random(0)).to(dtype).to(device)
    theta = [random[1:1000].clone()[1:], random[:6000].view(60, 100).t(), random[:0], random[:3].clone()]
    theta.append(random[: 8 * 6 * 9].view(8, 6, 3, 3).contiguous(memory_format=torch.channels_last))
    offsets, bits = [], 3
    for weight in theta:
        offsets.append(bits)
        bits += weight.numel() + 5
    mask = torch.randint(256, (-(-bits // 64) * 8,), generator=_random(1), dtype=torch.uint8)
    return [weight.clone() for weight in theta], mask.to(device), offsets


def _cases() -> list[Case]:
    cases = []
    for dtype in FLOATS:
        name = str(dtype).removeprefix("torch.")
        cases.append(Case("apply_mask", name, lambda device, d=dtype: apply_mask_arguments(device, d)))
        for shift in (0, 1):
            make = lambda device, d=dtype, s=shift: compact_arguments(device, d, s)  # noqa: E731
            cases.append(Case("compact_channels", f"{name}, shifted by {shift}", make))
        for size, density, shift in ((0, 1, 0), (1, 1, 0), (63, 0.5, 1), (8192, 0, 0), (20_011, 0.2, 0), (9000, 1, 1)):
            label = f"{name}, {size} elements, density {density}, shifted by {shift}"

            def dense(device: torch.device, a: Any = (size, dtype, density), s: int = shift) -> Tensor:
                return shifted(sparse(*a).to(device), s)

            def packed(device: torch.device, d: Any = dense, n: int = size, s: int = shift) -> tuple[Any, ...]:
                mask, values = reference.pack_sparse(d(device))
                return mask, shifted(values, s), n

            cases.append(Case("pack_sparse", label, lambda device, d=dense: (d(device),)))
            cases.append(Case("unpack_sparse", label, packed))
        if dtype == torch.float64:
            continue
        least = 16 if dtype == torch.float32 else 32
        for shape in ((32, least), (96, 5 * least)):
            for density in (0.3, 0.5, 0.9):
                make = lambda device, a=(shape, dtype, density): (two_of_four(*a).to(device),)  # noqa: E731
                cases.append(Case("compress_nm", f"{name}, {list(shape)}, density {density}", make))
        make = lambda device, a=((64, 2 * least), dtype, 0.5): (shifted(two_of_four(*a).to(device), 1),)  # noqa: E731
        cases.append(Case("compress_nm", f"{name}, shifted by 1", make))
    return cases


CASES = _cases()


def bits(tensor: Tensor) -> Tensor:
    """For comparisons that tell -0.0 from 0.0 and take NaN for itself."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(words[tensor.element_size()])


def assert_same(case: Case, found: Any, expected: Any) -> None:
    """Bitwise equal: shapes, dtypes and elements of everything the op returns."""
    found, expected = ([x] if isinstance(x, Tensor) else list(x) for x in (found, expected))
    assert len(found) == len(expected), case.name
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype, case.name
        assert one.shape == other.shape, case.name
        assert one.is_contiguous() or case.op == "apply_mask", case.name
        assert torch.equal(bits(one), bits(other.to(one.device))), case.name


def check(case: Case, implementation: Callable[..., Any], device: torch.device) -> None:
    """The implementation against the reference, on arguments of its own."""
    arguments, again = case.make(device), case.make(torch.device("cpu"))
    found, expected = implementation(*arguments), getattr(reference, case.op)(*again)
    if case.op == "apply_mask":  # in place
        found, expected = arguments[0], again[0]
    assert_same(case, found, expected)
