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
from fastalter.checkpoint.compacted import save_compacted
from fastalter.fusion import adapt
from fastalter.models import build, config_of
from fastalter.profile import main
from fastalter.profiling import Part, parts_of
from fastalter.profiling.job import _network, _Sum
from fastalter.profiling.measure import Times, measure_times, peak_memory
from fastalter.structure.compaction.compact import compact_model, plan_of
from fastalter.structure.grouping.find import find_groups
from fastalter.structure.mask import ChannelMask

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
    for cost in (*network["parts"], *network["branches"].values(), network["whole"]):
        assert sum(cost["kinds"].values()) == cost["flops"]
    lidar, camera = network["branches"]["lidar"]["kinds"], network["branches"]["camera"]["kinds"]
    assert (lidar["dense"], lidar["attention"], camera["sparse"]) == (0, 0, 0)
    assert 0 < camera["attention"] < camera["dense"]
    assert lidar["sparse"] > 0
    assert {name: cost["parameters"] > 0 for name, cost in network["branches"].items()} == {
        "camera": True,
        "lidar": True,
        "fusion": True,
    }
    batch = data.load("synthetic", config=model.config, batches=1, batch_size=1)[0]
    assert network["facts"]["points"] == len(batch.points[0])
    memory = [cost["memory"] for cost in (*network["branches"].values(), network["whole"])]
    assert max(memory[:-1]) <= memory[-1]
    assert network["whole"]["seconds"] > sum(part["seconds"] for part in network["parts"][:3]) > 0


def test_two_networks_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = config_of("bevfusion-tiny-resnet")
    save_checkpoint(tmp_path / "other.pth", build(narrow))
    assert main([str(EMBEDDED), str(tmp_path / "other.pth"), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "other.pth / bevfusion_tiny.pth" in out
    assert "MB" in out
    assert "attention" in out
    lines = out[out.index("other.pth / bevfusion_tiny.pth") :].splitlines()
    camera, lidar = (next(line.split() for line in lines if line.startswith(name)) for name in ("camera", "lidar"))
    assert lidar[1:3] == ["1.000", "1.000"]
    assert camera[1] != "1.000"


def test_a_compacted_checkpoint_beside_its_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of every set of channels is gone: by hand, each of a convolution's two sides is half as wide."""
    model = load_checkpoint(EMBEDDED).model.eval()
    groups = find_groups(adapt(model), data.load("synthetic", config=model.config, batches=1, batch_size=1)[0])
    kept = torch.cat([torch.arange(entry.size) % 2 == 0 for entry in groups.layout.entries])
    mask = ChannelMask(kept, groups, ratio=0.5)
    small = compact_model(model, mask)
    save_compacted(tmp_path / "small.safetensors", small, plan_of(model, mask))
    assert main([str(EMBEDDED), str(tmp_path / "small.safetensors"), *QUICK, "--json"]) == 0
    before, after = json.loads(capsys.readouterr().out)["networks"]
    assert after["facts"] == before["facts"]
    assert after["whole"]["parameters"] == sum(p.numel() for p in small.parameters() if p.requires_grad)
    share = {
        part["part"]: after_part["flops"] / part["flops"]
        for part, after_part in zip(before["parts"], after["parts"], strict=True)
        if part["flops"]
    }
    assert share["fuser"] == 0.25
    assert share["encoders.lidar.backbone"] == pytest.approx(0.25, abs=0.03)  # the points' own channels stay
    for branch in ("camera", "lidar", "fusion"):
        for kind, flops in before["branches"][branch]["kinds"].items():
            most = 0.7 if kind == "attention" else 0.6  # a lone head stays
            assert 0.2 * flops <= after["branches"][branch]["kinds"][kind] <= most * flops


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


def test_a_module_that_runs_twice_has_the_sum_of_both() -> None:
    layer = torch.nn.Linear(200, 200)
    x = torch.ones(2000, 200)
    times = measure_times(
        lambda: layer(layer(x)), {"layer": layer, "other": torch.nn.ReLU()}, rounds=3, warmup=0, device=CPU
    )
    assert set(times) == {"", "layer"}
    assert len(times["layer"].rounds) == 3
    assert all(both <= whole for both, whole in zip(times["layer"].rounds, times[""].rounds, strict=True))
    assert times["layer"].median > 0.5 * times[""].median


class Taking(torch.nn.Module):
    """Takes memory from the kernel itself: what an allocator keeps for later would count as well."""

    def __init__(self, megabytes: int, keep: bool = False) -> None:
        super().__init__()
        self.megabytes, self.keep, self.kept = megabytes, keep, []  # type: ignore[var-annotated]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = mmap.mmap(-1, self.megabytes << 20)
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
        self.kept.append(memory) if self.keep else memory.close()
        return x


def test_memory_at_its_highest_is_what_was_held_at_once() -> None:
    takes = Taking(64)

    def run() -> None:
        for _ in range(3):
            takes(torch.ones(1))

    assert 60 << 20 < peak_memory(run, {}, CPU)[""] < 80 << 20


def test_memory_of_a_part_is_with_what_was_kept_and_without_what_was_freed() -> None:
    modules = {"first": Taking(64), "second": Taking(16, keep=True), "third": Taking(8)}

    def run() -> None:
        for module in modules.values():
            module(torch.ones(1))
        Taking(96)(torch.ones(1))

    found = {name: size >> 20 for name, size in peak_memory(run, modules, CPU).items()}
    for name, expected in {"first": 64, "second": 16, "third": 24, "": 112}.items():
        assert expected - 2 < found[name] < expected + 8, name


def test_branches_are_the_sums_of_their_parts_round_by_round() -> None:
    def measured(parameters: int, dense: int, rounds: tuple[float, ...], memory: int | None) -> _Sum:
        return _Sum(parameters, {"dense": dense, "sparse": 2 * dense}, Times(rounds), memory)

    part = {
        name: Part(branch, name, torch.nn.Identity())
        for name, branch in {"a": "camera", "b": "camera", "c": "fusion"}.items()
    }
    whole = measured(100, 1000, (10.0, 12.0, 14.0), 7)
    parts = {
        part["a"]: measured(10, 100, (1.0, 2.0, 3.0), 5),
        part["b"]: measured(20, 200, (3.0, 2.0, 1.0), 6),
        part["c"]: measured(30, 300, (1.0, 2.0, 6.0), None),
    }
    network = _network("net", whole, parts, {})
    camera, fusion = network.branches["camera"], network.branches["fusion"]
    assert (camera.parameters, camera.flops, camera.kinds) == (30, 900, {"dense": 300, "sparse": 600})
    assert (camera.seconds, camera.spread, camera.memory) == (4.0, 0.0, 6)  # 4 in every round
    between = network.parts[-1]
    assert (between.parameters, between.flops, between.seconds, between.memory) == (40, 1200, 5.0, None)  # 5, 6, 4
    assert (fusion.parameters, fusion.flops, fusion.seconds, fusion.memory) == (70, 2100, 8.0, None)  # 6, 8, 10
    assert fusion.spread == 1.0
    assert [cost.part for cost in network.parts] == ["a", "b", "c", "(between the parts)"]


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
