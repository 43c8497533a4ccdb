"""python -m bench.compaction: physically smaller weights by the ops, beside the same in plain torch, in one run.

channels     all weights of BEVFusion-mit with half of the channels kept, at random and of both axes, by one call of
             compact_channels; plain: index_select, tensor by tensor and dim by dim.
pack         pack_sparse and unpack_sparse of 10 M float32 elements, 90 % of them zero; plain: x != 0 packed to bits and
             x[x != 0], then the bits unpacked and the values put back.
compress_nm  2:4 compression of a 4096 x 4096 matrix; plain: the conversion that torch's semi-structured tensors use.

Each case is held against plain torch before it is timed. Op and plain form alternate, the ratio of each round is taken,
and the median counts. Writes bench/results/compaction.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from bench.bulk import seconds, write_result
from bench.cases.compaction import ZEROS, half, pack_in_torch, select_each
from fastalter import ops

ROOT = Path(__file__).parent
RESULT = ROOT / "results" / "compaction.json"
MANIFEST = ROOT.parent / "tests" / "manifests" / "mit_bevfusion_det_swint_v0p075.json"


@dataclass
class Case:
    """An op beside plain torch; `faster` is how many times faster it has to be, if anything is asked of it."""

    run: Callable[[], Any]
    plain: Callable[[], Any]
    faster: float | None = None
    facts: dict[str, float] = field(default_factory=dict)


def same_bits(found: Tensor, expected: Tensor) -> bool:
    words = {2: torch.int16, 4: torch.int32}[found.element_size()]
    return found.shape == expected.shape and torch.equal(found.view(words), expected.view(words))


def channels(generator: torch.Generator) -> Case:
    """All floating tensors of the model, normalisation included; sparse convolutions are stored KRSC."""
    weights: list[Tensor] = []
    kept: list[dict[int, Tensor]] = []
    for tensor in json.loads(MANIFEST.read_text())["tensors"].values():
        shape = tensor["shape"]
        if not shape or "int" in tensor["dtype"]:
            continue
        dims = (0,) if len(shape) == 1 else (0, -1) if len(shape) == 5 else (0, 1)
        weights.append(torch.randn(shape, generator=generator))
        kept.append({dim: half(shape[dim], generator) for dim in dims})

    found, expected = ops.compact_channels(weights, kept), select_each(weights, kept)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True)), "compact_channels differs"
    facts = {"tensors": len(weights), "elements": sum(weight.numel() for weight in weights)}
    return Case(lambda: ops.compact_channels(weights, kept), lambda: select_each(weights, kept), 3, facts)


def pack(generator: torch.Generator, size: int) -> Case:
    dense = torch.randn(size, generator=generator)
    dense.masked_fill_(torch.rand(size, generator=generator) < ZEROS, 0.0)  # no -0: plain torch would lose it
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)

    def plain_unpack(mask: Tensor, values: Tensor) -> Tensor:
        present = (mask.view(-1, 1) & place).bool().view(-1)[:size]
        unpacked = torch.zeros(size)
        unpacked[present] = values
        return unpacked

    mask, values = ops.pack_sparse(dense)
    expected_mask, expected_values = pack_in_torch(dense)
    assert torch.equal(mask, expected_mask), "pack_sparse's mask differs"
    assert same_bits(values, expected_values), "pack_sparse's values differ"
    assert same_bits(plain_unpack(mask, values), dense), "the plain form loses something"
    assert same_bits(ops.unpack_sparse(mask, values, size), dense), "unpack_sparse differs"
    packed = (mask.numel() + values.numel() * values.element_size()) / (size * dense.element_size())
    assert packed <= 0.14, f"packed to {packed:.3f} of the dense bytes"
    return Case(
        lambda: ops.unpack_sparse(*ops.pack_sparse(dense), size),
        lambda: plain_unpack(*pack_in_torch(dense)),
        5,
        {"elements": size, "packed_bytes": packed},
    )


def compress(generator: torch.Generator, dtype: torch.dtype, size: int) -> Case:
    group, keep = (2, 1) if dtype == torch.float32 else (4, 2)
    dense = torch.randn(size, size, generator=generator)
    order = torch.rand(size, size // group, group, generator=generator).argsort(-1)
    dense = (dense * (order < keep).view(size, size)).to(dtype)
    expected = sparse_semi_structured_from_dense_cutlass(dense)
    for found, wanted in zip(ops.compress_nm(dense), expected, strict=True):
        assert same_bits(found, wanted), "compress_nm differs from torch's conversion"
    return Case(
        lambda: ops.compress_nm(dense), lambda: sparse_semi_structured_from_dense_cutlass(dense), None, {"rows": size}
    )


def cases(scale: int = 1) -> dict[str, Case]:
    """All cases; `scale` divides the sizes of those that have one."""
    generator = torch.Generator().manual_seed(0)
    return {
        "channels": channels(generator),
        "pack": pack(generator, 10_000_000 // scale),
        "compress_nm, float32": compress(generator, torch.float32, 4096 // scale),
        "compress_nm, float16": compress(generator, torch.float16, 4096 // scale),
    }


def measure(rounds: int, of_name: dict[str, Case]) -> dict[str, Any]:
    """Time op and plain form of every case in turn."""
    result: dict[str, Any] = {"rounds": rounds}
    for name, case in of_name.items():
        times = [(seconds(case.run), seconds(case.plain)) for _ in range(rounds + 1)][1:]
        result[name] = {
            "faster": median(plain / op for op, plain in times),
            "at_least": case.faster,
            "op_seconds": median(op for op, _ in times),
            "plain_seconds": median(plain for _, plain in times),
            **case.facts,
        }
    return result


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table("case", "op ms", "plain ms", "times faster", "at least", title="smaller weights")
    for name, row in result.items():
        if isinstance(row, dict) and "faster" in row:
            times = (f"{1e3 * row[f'{form}_seconds']:.1f}" for form in ("op", "plain"))
            table.add_row(name, *times, f"{row['faster']:.1f}", str(row["at_least"] or ""))
    console = Console()
    console.print(table)
    console.print(f"packed: {result['pack']['packed_bytes']:.3f} of the dense bytes")


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; the median is shown.")] = 7,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = RESULT,
) -> None:
    show(write_result(out, measure(rounds, cases())))


if __name__ == "__main__":
    typer.run(main)
