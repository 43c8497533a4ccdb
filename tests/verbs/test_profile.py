"""The profile verb on the tiny model, as a user runs it."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest
import torch

from fastalter import data
from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint, save_checkpoint
from fastalter.fusion import adapt
from fastalter.models import build, config_of
from fastalter.profile import main
from fastalter.profiling import parts_of
from fastalter.profiling.measure import Times, measure_times, peak_memory

QUICK = ["--rounds", "2", "--warmup", "1"]
CPU = torch.device("cpu")


def test_parts_are_the_whole_model_and_each_has_its_branch() -> None:
    model = build("bevfusion-tiny")
    parts = parts_of(adapt(model))
    assert [(part.branch, part.path) for part in parts] == [
        ("camera", "encoders.camera.backbone"),
        ("camera", "encoders.camera.neck"),
        ("camera", "encoders.camera.vtransform"),
        ("lidar", "encoders.lidar.voxelize"),
        ("lidar", "encoders.lidar.backbone"),
        ("fusion", "fuser"),
        ("fusion", "decoder.backbone"),
        ("fusion", "decoder.neck"),
        ("fusion", "heads.object"),
    ]
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_embedded_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(EMBEDDED), *QUICK, "--json"]) == 0
    out, err = capsys.readouterr()
    (network,) = json.loads(out)["networks"]
    assert not err
    model = load_checkpoint(EMBEDDED).model
    assert network["whole"]["parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(part["flops"] for part in network["parts"]) == network["whole"]["flops"]
    assert {name: cost["parameters"] > 0 for name, cost in network["branches"].items()} == {
        "camera": True,
        "lidar": True,
        "fusion": True,
    }
    batch = data.load("synthetic", config=model.config, batches=1, batch_size=1)[0]
    assert network["facts"]["points"] == len(batch.points[0])
    assert network["memory"] is None or network["memory"] >= 0
    assert network["whole"]["seconds"] > sum(part["seconds"] for part in network["parts"][:3]) > 0


def test_two_networks_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = config_of("bevfusion-tiny-resnet")
    save_checkpoint(tmp_path / "other.pth", build(narrow))
    assert main([str(EMBEDDED), str(tmp_path / "other.pth"), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "other.pth / bevfusion_tiny.pth" in out
    lines = out[out.index("other.pth / bevfusion_tiny.pth") :].splitlines()
    camera, lidar = (next(line.split() for line in lines if line.startswith(name)) for name in ("camera", "lidar"))
    assert lidar[1:3] == ["1.000", "1.000"]
    assert camera[1] != "1.000"


def test_times_are_of_the_rounds_that_count() -> None:
    calls: list[int] = []
    layer = torch.nn.Linear(3, 3)

    def run() -> None:
        calls.append(len(calls))
        layer(torch.ones(1, 3))

    times = measure_times(run, {"layer": layer}, rounds=4, warmup=2, device=CPU)
    assert len(calls) == 6
    assert len(times[""].rounds) == len(times["layer"].rounds) == 4
    assert 0 < times["layer"].median < times[""].median
    assert not layer._forward_hooks
    assert Times((1.0, 2.0, 3.0, 4.0, 5.0)).median == 3.0
    assert Times((1.0, 2.0, 3.0, 4.0, 5.0)).spread == 1.0


def test_memory_at_its_highest_is_what_was_held_at_once() -> None:
    """Memory from the kernel itself: what an allocator keeps for later would count as well."""

    def run() -> None:
        for _ in range(3):
            with mmap.mmap(-1, 64 << 20) as memory:
                for page in range(0, len(memory), mmap.PAGESIZE):
                    memory[page] = 1

    found = peak_memory(run, CPU)
    assert found is None or 60 << 20 < found < 80 << 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to profile: give a checkpoint file, or --model"),
        (["a.pth", "b.pth", "c.pth"], "3 checkpoints: give one, or two"),
        (["missing.pth"], "missing.pth"),
        (["--model", "resnet"], "there is no model 'resnet'"),
        (["--model", "bevfusion-tiny", "--rounds", "0"], "--rounds 0: give 1 or more"),
        (["--model", "bevfusion-tiny", "--image-size", "64"], "--image-size 64"),
        (["--model", "bevfusion-tiny", "--device", "tpu"], "--device is 'tpu'"),
        (["--model", "bevfusion-tiny", "--data", "frames:/nowhere"], "/nowhere"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1
