"""One part to one ONNX file, and the file against torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastalter.errors import ExportError
from fastalter.exporting.parts import OnnxPart

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
LEAST_OPSET, OPSET, MOST_OPSET = 18, 18, 23
"""torch's exporter speaks 18; TensorRT 10 reads all of these, TensorRT 8 none."""
TOLERANCE = 1e-4
"""Greatest difference to torch, relative to the output's maximum. Both compute in float32 and add in another order,
which leaves about 1e-6; but the depth distribution is a softmax, which turns the relative rounding of a logit into an
absolute one: logits of a hundred, as an untrained ResNet-101 has them, leave 6e-5."""


def check_packages() -> None:
    """Raises ExportError naming the packages that are not there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX files need {', '.join(missing)}, not installed here: pip install '.[export]'")


def write_onnx(part: OnnxPart, path: Path, *, opset: int = OPSET, metadata: Mapping[str, Any] | None = None) -> None:
    """Write one self-contained file, float32, of static shapes; `metadata` goes into its properties as JSON.

    Raises:
        ExportError: a package that is missing, a module that torch cannot export, an opset that cannot be had.
    """
    check_packages()
    import onnx

    inputs = tuple(torch.zeros(shape) for shape in part.inputs.values())
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                part.module,
                inputs,
                dynamo=True,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                opset_version=opset,
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props["fastalter"] = json.dumps(metadata or {})
        program.save(path, external_data=False)
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # the exporter's, and whatever a user's layer raises under it
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{part.file}: torch cannot export it ({type(error).__name__}: {reason})") from error
    found = {entry.domain: entry.version for entry in onnx.load(path, load_external_data=False).opset_import}
    if found.get("") != opset:
        raise ExportError(f"{part.file}: opset {found.get('')} came out instead of {opset}; leave --opset out")


def check_onnx(part: OnnxPart, path: Path, *, seed: int = 0) -> dict[str, float]:
    """Output -> greatest difference between onnxruntime and torch on drawn inputs, relative to torch's maximum.

    Raises:
        ExportError: a package that is missing, other names or shapes, a difference above TOLERANCE.
    """
    check_packages()
    import onnxruntime

    inputs = part.draw(seed)
    with torch.no_grad():
        computed = part.reference(*inputs)
    expected = computed if isinstance(computed, tuple) else (computed,)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {name: tensor.numpy() for name, tensor in zip(part.inputs, inputs, strict=True)}
    found = session.run(list(part.outputs), given)
    errors = {
        name: _difference(torch.from_numpy(array), truth)
        for name, array, truth in zip(part.outputs, found, expected, strict=True)
    }
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        told = ", ".join(f"{name} by {error:.1e}" for name, error in wrong.items())
        raise ExportError(
            f"{part.file}: onnxruntime differs from torch in {told} of its maximum, where {TOLERANCE:.0e} is rounding; "
            "do not deploy it, and report the checkpoint's model"
        )
    return errors


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Infinite where the shapes differ; NaN where one has it and the other may not."""
    if found.shape != expected.shape:
        return float("inf")
    greatest = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    return difference / greatest if greatest else difference
