"""python -m bench.fuse: fusion convolution, batch norm and ReLU for all mask states at once, beside three plain passes.

BEVFusion's fuser: camera 80 + LiDAR 256 channels to 256, 3x3, on a map of 180x180, batch 1, float32. The plain form
runs relu(norm(conv(cat(features)))) with torch's modules in training mode three times: with both features, and with
either one replaced by zeros. The shared form (fusion.fuse_block) is ops.masked_fuse, batch norm's scale and shift from
the five sums, and ops.masked_fuse_norm. Forward + backward runs one backward pass per state, which keep their gradients
apart: with respect to the features the state uses, the convolution's weight and the norm's weight and bias. Shared and
plain form alternate, the ratio of each round is taken, and the median counts. Writes bench/results/fuse.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.bulk import seconds, write_result
from fastalter.fusion.fuse_block import FuseBlock

RESULT = Path(__file__).parent / "results" / "fuse.json"
STATES = ("both", "first", "second")
LIMITS = {"forward": 0.42, "forward + backward": 0.65}
# float32 against float32 in another order of addition: each output sums 336*9 products, each gradient up to 180*180.
TOLERANCE = 1e-4

Gradients = dict[str, Tensor]


class Workload:
    """The fuser's layers with random weights, two features, and a gradient per state for the output."""

    def __init__(self, camera: int = 80, lidar: int = 256, channels: int = 256, size: int = 180) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.conv = nn.Conv2d(camera + lidar, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        with torch.no_grad():
            self.conv.weight.copy_(normal(*self.conv.weight.shape) * (9 * (camera + lidar)) ** -0.5)
            self.norm.weight.copy_(1 + 0.1 * normal(channels))
            self.norm.bias.copy_(0.1 * normal(channels))
        self.camera, self.lidar = (normal(1, width, size, size).requires_grad_() for width in (camera, lidar))
        self.grads = {state: normal(1, channels, size, size) for state in STATES}

    def shared(self) -> dict[str, Tensor]:
        """The outputs of the three states, by the ops."""
        block = FuseBlock(("conv", "norm", "relu"), self.conv, self.norm)
        return dict(zip(STATES, block.every_state(self.camera, self.lidar), strict=True))

    def plain(self) -> dict[str, Tensor]:
        """The same by three passes through torch's modules."""
        return {state: self.plain_pass(state) for state in STATES}

    def plain_pass(self, state: str) -> Tensor:
        camera = self.camera if state != "second" else torch.zeros_like(self.camera)
        lidar = self.lidar if state != "first" else torch.zeros_like(self.lidar)
        return self.norm(self.conv(torch.cat((camera, lidar), 1))).relu()

    def gradients(self, outputs: dict[str, Tensor]) -> dict[str, Gradients]:
        """Per state, what its output's gradient gives to everything it depends on."""
        found = {}
        for state, output in outputs.items():
            wanted = {"weight": self.conv.weight, "gamma": self.norm.weight, "beta": self.norm.bias}
            wanted |= {"camera": self.camera} if state != "second" else {}
            wanted |= {"lidar": self.lidar} if state != "first" else {}
            grads = torch.autograd.grad(output, list(wanted.values()), self.grads[state], retain_graph=True)
            found[state] = dict(zip(wanted, grads, strict=True))
        return found

    def check(self) -> None:
        """Both forms give the same outputs and gradients, but for rounding."""
        plain, shared = self.plain(), self.shared()
        expected, found = self.gradients(plain), self.gradients(shared)
        for state in STATES:
            _assert_close(f"{state}: output", shared[state], plain[state])
            for name, grad in expected[state].items():
                if name == "weight":  # the masked half's gradient is zero in both forms
                    other = {"first": slice(self.camera.shape[1], None), "second": slice(self.camera.shape[1])}
                    assert state == "both" or not grad[:, other[state]].any(), "a masked feature has a gradient"
                _assert_close(f"{state}: d {name}", found[state][name], grad)


def _assert_close(what: str, found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).detach().norm() / expected.detach().norm())
    assert error <= TOLERANCE, f"{what} differs by {error:.1e} of its norm"


def measure(rounds: int, work: Workload) -> dict[str, Any]:
    """Check, then time both forms in turn."""
    work.check()

    def without_grad(run: Callable[[], object]) -> float:
        with torch.no_grad():
            return seconds(run)

    result: dict[str, Any] = {"rounds": rounds}
    for what, timed in (
        ("forward", without_grad),
        ("forward + backward", lambda run: seconds(lambda: work.gradients(run()))),
    ):
        times = [(timed(work.shared), timed(work.plain)) for _ in range(rounds + 1)][1:]
        result[what] = {
            "ratio": median(shared / plain for shared, plain in times),
            "ratios": [shared / plain for shared, plain in times],
            "shared_seconds": median(shared for shared, _ in times),
            "plain_seconds": median(plain for _, plain in times),
            "limit": LIMITS[what],
        }
    return result


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table("", "shared ms", "plain ms", "ratio", "at most", title="fuser, all three mask states")
    for what in LIMITS:
        row = result[what]
        times = (f"{1e3 * row[f'{form}_seconds']:.0f}" for form in ("shared", "plain"))
        table.add_row(what, *times, f"{row['ratio']:.3f}", f"{row['limit']}")
    Console().print(table)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; the median is shown.")] = 5,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = RESULT,
) -> None:
    show(write_result(out, measure(rounds, Workload())))


if __name__ == "__main__":
    typer.run(main)
