"""Kept channels of many weights, sparse packing and 2:4 compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from bench.cases.case import Case
from fastalter import ops
from fastalter.ops import reference


@dataclass(frozen=True)
class CompactionSizes:
    """Weights whose channels are compacted; elements of the packed arena; rows and columns of the 2:4 matrix."""

    weights: tuple[tuple[int, ...], ...]
    arena: int
    matrix: tuple[int, int]


SMALL = CompactionSizes(((16, 8, 3, 3), (32, 16), (16,), (8, 3, 3, 3, 4)), 5000, (64, 128))
FULL = CompactionSizes(
    (*((256, 256, 3, 3),) * 12, *((768, 768),) * 24, *((768,),) * 48, *((128, 3, 3, 3, 128),) * 4),
    10_000_000,
    (3072, 768),
)
ZEROS = 0.9


class Compaction:
    """Weights and kept channels, a sparse arena, a 2:4 matrix."""

    def __init__(self, sizes: CompactionSizes, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

        self.weights = [draw(*shape) for shape in sizes.weights]
        # Rows and columns where there are both: of a sparse convolution (5-dim, KRSC) the columns come last.
        dims = [(0,) if w.dim() == 1 else (0, w.dim() - 1) if w.dim() == 5 else (0, 1) for w in self.weights]
        self.kept = [
            {dim: half(w.shape[dim], generator).to(device) for dim in of}
            for w, of in zip(self.weights, dims, strict=True)
        ]
        zero = torch.rand(sizes.arena, generator=generator) < ZEROS
        self.sparse = draw(sizes.arena).masked_fill_(zero.to(device), 0.0)
        self.mask, self.values = reference.pack_sparse(self.sparse)
        self.matrix = draw(*sizes.matrix)
        self.matrix.view(-1, 4)[:, ::2] = 0  # two of four

    def index_select(self) -> list[Tensor]:
        """compact_channels in torch."""
        return select_each(self.weights, self.kept)

    def pack_in_torch(self) -> tuple[Tensor, Tensor]:
        """pack_sparse in torch."""
        return pack_in_torch(self.sparse)


def half(channels: int, generator: torch.Generator) -> Tensor:
    """Half of the channels, rounded up, in order."""
    return torch.randperm(channels, generator=generator)[: (channels + 1) // 2].sort().values


def select_each(weights: Sequence[Tensor], kept: Sequence[Mapping[int, Tensor]]) -> list[Tensor]:
    """The kept channels by index_select, layer by layer and dim by dim."""
    compacted = []
    for weight, of_weight in zip(weights, kept, strict=True):
        for dim, index in of_weight.items():
            weight = weight.index_select(dim, index)
        compacted.append(weight)
    return compacted


def pack_in_torch(dense: Tensor) -> tuple[Tensor, Tensor]:
    """The flags x != 0 packed to bits, and the values x[x != 0]. Loses -0.0."""
    present = dense != 0
    padded = torch.nn.functional.pad(present, (0, -dense.numel() % 64)).to(torch.uint8)
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=dense.device)
    return (padded.view(-1, 8) * place).sum(1, dtype=torch.uint8), dense[present]


def cases(work: Compaction) -> dict[str, Case]:
    """The case of every op, by the op's name; compress_nm only for the dtypes that it has."""
    w = work
    element, size = w.sparse.element_size(), w.sparse.numel()
    small = sum(t.numel() for t in w.index_select()) * element
    packed = w.mask.numel() + w.values.numel() * element
    found = {
        "compact_channels": Case(
            lambda: ops.compact_channels(w.weights, w.kept),
            2 * small,
            lambda: _equal(ops.compact_channels(w.weights, w.kept), w.index_select()),
            w.index_select,
            {"index_select per layer": w.index_select},
        ),
        "pack_sparse": Case(
            lambda: ops.pack_sparse(w.sparse),
            size * element + packed,
            lambda: _equal(ops.pack_sparse(w.sparse), (w.mask, w.values)),
            lambda: reference.pack_sparse(w.sparse),
            {"torch": w.pack_in_torch, "to_sparse": w.sparse.to_sparse},
        ),
        "unpack_sparse": Case(
            lambda: ops.unpack_sparse(w.mask, w.values, size),
            size * element + packed,
            lambda: _equal([ops.unpack_sparse(w.mask, w.values, size)], [w.sparse]),
            lambda: reference.unpack_sparse(w.mask, w.values, size),
            {"to_dense": _to_dense(w.sparse)},
        ),
    }
    if w.matrix.dtype != torch.float64:
        found["compress_nm"] = _compression(w.matrix)
    return found


def _compression(matrix: Tensor) -> Case:
    values, metadata = reference.compress_nm(matrix)
    moved = sum(t.numel() * t.element_size() for t in (matrix, values, metadata))
    return Case(
        lambda: ops.compress_nm(matrix),
        moved,
        lambda: _equal(ops.compress_nm(matrix), sparse_semi_structured_from_dense_cutlass(matrix)),
        lambda: reference.compress_nm(matrix),
        {"torch": lambda: sparse_semi_structured_from_dense_cutlass(matrix)},
    )


def _to_dense(dense: Tensor) -> object:
    sparse = dense.to_sparse().coalesce()
    return sparse.to_dense


def _equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), "differs from the reference"
