"""The structured benchmark on small networks: what it holds against each other, and what it makes of failures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from bench import structure, structure_peer
from bench.structure_peer import DenseNetwork, compare_with_torch_pruning, prepare
from fastalter.exporting import onnx_parts
from fastalter.fusion import adapt
from fastalter.models import build
from fastalter.models.bevfusion import BEVFusion
from fastalter.profiling import count_flops
from fastalter.structure.budget import select_channels
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.grouping.find import find_groups

TINY = "bevfusion-tiny-resnet"
SETTINGS: dict[str, Any] = {"ratio": 0.5, "scores": "random", "round_to": None, "rounds": 1, "seed": 3}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return structure.measure(TINY, **SETTINGS)


def test_the_shares_are_those_of_the_parts(found: dict[str, Any]) -> None:
    model = build(TINY, 3).eval()
    assert list(found["parts"]) == ["camera.backbone.onnx", "camera.vtransform.onnx", "fuser.onnx", "head.bbox.onnx"]
    for part in onnx_parts(model):
        dense = found["parts"][part.file]["flops"][0]
        inputs = part.draw(1)
        assert dense == count_flops(part.module, lambda part=part, inputs=inputs: part.module(*inputs))[""]
    dense, cut = (sum(row["flops"][place] for row in found["parts"].values()) for place in (0, 1))
    assert found["share_of_flops"] == cut / dense
    assert 0.3 < found["share_of_flops"] < 0.7
    seconds = [sum(row["seconds"][place] for row in found["parts"].values()) for place in (0, 1)]
    assert found["share_of_time"] == pytest.approx(seconds[1] / seconds[0])  # of one round
    assert 0.5 <= found["removed"]["flops"] < 0.52
    assert (
        found["parameters"][1] < found["parameters"][0] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    )
    assert 0 <= found["difference"] < 1e-4


def test_a_compaction_that_computes_something_else_is_not_timed() -> None:
    model, batch = structure.network(TINY, 3)
    groups = find_groups(adapt(model), batch)
    mask = select_channels(structure.scores_of("random", groups, model, 0), groups, 0.3)
    small: BEVFusion = compact_model(model, mask)
    assert structure.difference(model, small, mask, batch) < 1e-4
    with torch.no_grad():
        small.fuser[0].weight *= 1.01  # type: ignore[operator]
    with pytest.raises(AssertionError, match="compacted differs from masked"):
        structure.difference(model, small, mask, batch)


def test_torch_pruning_stands_on_the_same_network(found: dict[str, Any]) -> None:
    peer = found["torch_pruning"]
    assert "error" not in peer, peer
    assert peer["network"] == "trunk, neck, fuser, decoder"
    assert list(peer["seconds"]) == ["compact_model", "mask and compact_model", "step", "removal"]
    assert 0 < peer["seconds"]["removal"] < peer["seconds"]["step"]
    assert peer["seconds"]["compact_model"] < peer["seconds"]["mask and compact_model"]
    dense, ours, theirs = peer["parameters"]
    assert dense > ours
    assert dense > theirs


def test_the_pruner_works_on_a_copy_and_what_leaves_keeps_its_channels() -> None:
    import torch_pruning

    dense = DenseNetwork(build(TINY, 3)).eval()
    with torch.no_grad():
        before = dense(*dense.inputs())
    pruned, pruner = prepare(torch_pruning, dense, dense.inputs(), 0.3)
    pruner.step()
    with torch.no_grad():
        after = pruned(*dense.inputs())
        assert all(torch.equal(a, b) for a, b in zip(before, dense(*dense.inputs()), strict=True))
    assert [a.shape for a in after] == [b.shape for b in before]
    assert structure_peer.count(pruned) < structure_peer.count(dense)


def test_of_a_swin_network_the_rest_is_compared() -> None:
    peer = compare_with_torch_pruning(build("bevfusion-tiny", 3).eval(), ratio=0.5, rounds=1)
    assert peer["network"] == "neck, fuser, decoder"
    assert peer["parameters"][1] < peer["parameters"][0]


def test_without_torch_pruning_its_row_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert ".[peers]" in compare_with_torch_pruning(build(TINY, 3).eval(), ratio=0.5, rounds=1)["error"]


def test_a_peer_that_fails_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("lost a channel\nmore")

    monkeypatch.setattr(structure_peer, "prepare", broken)
    peer = compare_with_torch_pruning(build(TINY, 3).eval(), ratio=0.5, rounds=1)
    assert peer == {"error": "ZeroDivisionError: lost a channel"}


def test_what_is_asked() -> None:
    def met(compact: float, time: float, ours: float, step: float) -> dict[str, bool]:
        peer = {"seconds": {"compact_model": ours, "step": step}}
        return structure.targets({"seconds": {"compact_model": compact}, "share_of_time": time, "torch_pruning": peer})

    assert met(0.9, 0.6, 1.0, 3.0) == {"compaction": True, "time": True, "peer": True}
    assert met(1.0, 0.61, 1.0, 2.9) == {"compaction": False, "time": False, "peer": False}
    silent = {"seconds": {"compact_model": 0.1}, "share_of_time": 0.1, "torch_pruning": {"error": "none"}}
    assert structure.targets(silent) == {"compaction": True, "time": True}


def test_the_command_writes_its_settings_and_provenance(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def given(name: str, **settings: Any) -> dict[str, Any]:
        asked.append({"name": name, **settings})
        return dict(found)

    monkeypatch.setattr(structure, "measure", given)
    app = typer.Typer()
    app.command()(structure.main)
    out = tmp_path / "structure.json"
    arguments = ["--network", TINY, "--round-to", "0", "--rounds", "1", "--seed", "3", "--out", str(out)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert asked == [{"name": TINY, **SETTINGS}]
    assert {"commit", "device", "threads", "versions"} <= set(result["provenance"])
    assert {**result["networks"][TINY], "met": None} == {**json.loads(json.dumps(found)), "met": None}
    assert set(result["networks"][TINY]["met"]) == {"compaction", "time", "peer"}
    assert "fuser.onnx" in done.output
    assert "torch-pruning 1." in done.output
