"""python -m bench.gpu: check and time every op on the GPU that is here.

For each dtype and op: the outcome against the reference on the same device, then triton.testing.do_bench of the op, of
the reference and of what a user would call. Writes bench/results/gpu-<name>.json. Without a GPU it says so and exits
with status 2. Nothing in this repository was measured by it yet: send us your file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.bulk import provenance
from bench.cases import DTYPES, every_case
from bench.table import copy_bandwidth, measure, show
from fastalter.ops import backends

RESULTS = Path(__file__).parent / "results"
TIMED = ("bfloat16", "float16", "float32")  # float64 is for oracles


def seconds_on_gpu(run: Any) -> float:
    """Median seconds of a call, caches flushed between calls."""
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median")) / 1e3


def check_all() -> list[str]:
    """Every op in every dtype against its reference, on small workloads first; one line per failure."""
    failures = []
    for name, dtype in DTYPES.items():
        for op, case in every_case(dtype, "cuda").items():
            try:
                case.check()
            except Exception as error:  # a kernel that does not run is as wrong as one that is off
                failures.append(f"{op}, {name}, {backends.serving(op, 'cuda').name}: {str(error).splitlines()[0]}")
    return failures


def main(out: Annotated[Path | None, typer.Option(help="Where the JSON goes.")] = None) -> None:
    if not torch.cuda.is_available():
        typer.echo("error: torch sees no CUDA device here; run this on a machine that has one", err=True)
        raise typer.Exit(2)
    if failures := check_all():
        typer.echo("wrong:\n" + "\n".join(failures), err=True)
        raise typer.Exit(1)
    device = torch.cuda.get_device_name()
    results: dict[str, Any] = {}
    for name in TIMED:
        results[name] = {
            "provenance": provenance() | {"device": device, "cuda": torch.version.cuda},
            "dtype": name,
            "copy_bandwidth": copy_bandwidth("cuda", seconds_on_gpu),
            "ops": measure(every_case(DTYPES[name], "cuda", full=True), "cuda", 1, seconds_on_gpu),
        }
        show(results[name])
    path = out or RESULTS / f"gpu-{device.lower().replace(' ', '-')}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    typer.echo(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)
