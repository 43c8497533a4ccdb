"""Hold modules against tensors recorded from the upstream programs.

The environment variable `FASTALTER_GROUND_TRUTH` names a folder with `manifests/`, `fixtures/` and `data/`. Tests that
need it are skipped, and say why, only when the variable is unset; a folder that lacks a file is a failure.

A fixture stores inputs, outputs, gradients and batch-norm statistics but no weights: `weight_for` replays them from
each key and shape. The stored gradients are those of `cosine_scalar` over the floating outputs.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

VARIABLE = "FASTALTER_GROUND_TRUTH"
CONSTRUCTED = ("frustum", "dx", "bx", "nx", "relative_position_index")
"""Last key components of tensors that a model computes from its configuration; `weight_for` leaves them alone."""

SPCONV1_TO_SPCONV2 = (4, 0, 1, 2, 3)
"""[k0, k1, k2, in, out] (MIT's files) to [out, k0, k1, k2, in] (spconv 2)."""
SPCONV2_TO_SPCONV1 = (1, 2, 3, 4, 0)

Mode = Literal["eval", "train"]
MODES: tuple[Mode, ...] = ("eval", "train")

OUTPUT_TOLERANCE: Mapping[Mode, float] = {"eval": 1e-5, "train": 3e-5}
"""Largest difference over the largest value. Twenty times what float32 and float64 runs of upstream differ by."""
GRADIENT_TOLERANCE = 1e-4

needs_ground_truth = pytest.mark.skipif(
    VARIABLE not in os.environ, reason=f"{VARIABLE} is not set: it names the folder with the recorded upstream tensors"
)


def root() -> Path:
    """The ground-truth folder; skips the running test when the variable is unset."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} is not set: it names the folder with the recorded upstream tensors")
    return Path(os.environ[VARIABLE])


@dataclass(frozen=True)
class Fixture:
    """One recorded module. `inputs`, `middle`: name -> tensor. `prefix`: where the module sits in the full model."""

    name: str
    prefix: str
    config: dict[str, Any]
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, folder: str) -> dict[str, Tensor]:
        """The tensors under `folder/`, by the rest of their name."""
        return {key[len(folder) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{folder}/")}

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.group("in").items()}

    def outputs(self, mode: Mode) -> dict[str, Tensor]:
        return self.group(f"out_{mode}")

    def gradients(self, mode: Mode) -> dict[str, Tensor]:
        """Gradients by module key, the prefix removed."""
        return self._without_prefix(self.group(f"grad_{mode}"))

    def statistics(self) -> dict[str, Tensor]:
        """Batch-norm running statistics after the one train forward, by module key."""
        return self._without_prefix(self.group("after_train"))

    def _without_prefix(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key[len(self.prefix) :]: value for key, value in tensors.items()}


def load_fixture(name: str) -> Fixture:
    """Read `fixtures/<name>.safetensors`."""
    with safe_open(str(root() / "fixtures" / f"{name}.safetensors"), "pt") as file:
        metadata = json.loads(file.metadata()["json"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    return Fixture(name, metadata.get("prefix", ""), metadata.get("config", {}), metadata, tensors)


def weight_for(key: str, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """The float64 values every fixture uses for the tensor `key`; None means: keep what the module constructed."""
    last = key.rsplit(".", 1)[-1]
    if last in CONSTRUCTED:
        return None
    if last == "num_batches_tracked":
        return np.zeros(shape)
    size = math.prod(shape)
    x: np.ndarray[Any, np.dtype[np.float64]] = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(size)
    x = x.reshape(shape)
    if last == "running_mean":
        return 0.1 * x
    if last == "running_var":
        return np.asarray(1.0 + 0.5 * np.abs(x))
    if len(shape) >= 2:
        scale = math.sqrt(1.5 * max(shape) / size)
        if "prediction_heads." in key or "task_heads." in key:
            scale *= 0.2
        elif "heatmap_head.1." in key:
            scale *= 0.1
        return scale * x
    return 1.0 + 0.1 * x if last == "weight" else 0.05 * x


def fill_weights(module: nn.Module, prefix: str = "", spconv1: bool = True) -> None:
    """Overwrite a module's state with `weight_for`, rounded to float32 first, as the fixtures were made.

    Five-dimensional weights are sparse convolutions in spconv 2's layout. With `spconv1` they are generated in the
    layout of MIT's files and permuted; without (fixtures of mmdetection3d) they are generated as they stand.
    """
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            permute = spconv1 and tensor.ndim == 5
            shape = [tensor.shape[i] for i in SPCONV2_TO_SPCONV1] if permute else tensor.shape
            values = weight_for(prefix + key, shape)
            if values is None:
                continue
            source = torch.as_tensor(values).to(torch.float32 if tensor.is_floating_point() else tensor.dtype)
            tensor.copy_(source.permute(SPCONV1_TO_SPCONV2) if permute else source)


def cosine_scalar(outputs: Sequence[Tensor]) -> Tensor:
    """sum(out * cos(0.37 * flat index)) over the floating outputs, the pattern restarting for each."""
    total = torch.zeros((), dtype=torch.float64)
    for output in (o for o in outputs if o.is_floating_point()):
        pattern = torch.cos(0.37 * torch.arange(output.numel(), dtype=torch.float64)).reshape(output.shape)
        total = total + (output * pattern.to(output)).sum().double().cpu()
    return total


def assert_peak_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """Fail unless max|actual - expected| <= tolerance * max|expected|; returns that ratio."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}"
    peak = expected.double().abs().max().item()
    worst = (actual.detach().double().cpu() - expected.double()).abs().max().item()
    ratio = worst / peak if peak > 0 else worst
    assert ratio <= tolerance, f"{what}: differs by {ratio:.2e} of the peak, {tolerance:.0e} allowed"
    return ratio


def check_module(
    fixture: Fixture,
    module: nn.Module,
    run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    *,
    mode: Mode,
    dtype: torch.dtype,
    scalar: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    output_tolerance: float | None = None,
    gradient_tolerance: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Run a module on a fixture's inputs; compare outputs, gradients and, in train mode, batch-norm statistics.

    `run` maps the inputs to outputs named as recorded. `gradient_tolerance` replaces the usual one for single keys.
    Returns the observed differences over the peak, by what was compared.
    """
    fill_weights(module, fixture.prefix)
    module.to(dtype).train(mode == "train")
    outputs = run(fixture.inputs(dtype))
    total = (scalar or (lambda named: cosine_scalar(list(named.values()))))(outputs)
    module.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]

    tolerance = OUTPUT_TOLERANCE[mode] if output_tolerance is None else output_tolerance
    observed = {}
    for name, expected in fixture.outputs(mode).items():
        observed[name] = assert_peak_close(outputs[name], expected, tolerance, f"{fixture.name} {mode} {name}")

    parameters = dict(module.named_parameters())
    for key, expected in fixture.gradients(mode).items():
        gradient = parameters[key].grad
        assert gradient is not None, f"{fixture.name}: {key} got no gradient"
        allowed = (gradient_tolerance or {}).get(key, GRADIENT_TOLERANCE)
        expected = expected.permute(SPCONV1_TO_SPCONV2) if expected.ndim == 5 else expected
        what = f"{fixture.name} {mode} gradient of {key}"
        observed[f"d {key}"] = assert_peak_close(gradient, expected, allowed, what)

    if mode == "train":
        buffers = dict(module.named_buffers())
        for key, expected in fixture.statistics().items():
            what = f"{fixture.name} {key} after one train forward"
            observed[key] = assert_peak_close(buffers[key], expected, OUTPUT_TOLERANCE["train"], what)
    return observed
