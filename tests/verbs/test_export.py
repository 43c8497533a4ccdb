"""The export verb on the tiny model, as a user runs it; onnx files themselves are tests/exporting's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
import torch

from fastalter.artifacts import sha256
from fastalter.export import main
from fastalter.exporting import onnx_file


@pytest.fixture
def pruned(tmp_path: Path, checkpoint: Path) -> Path:
    """A checkpoint with half of the fuser's output channels zeroed."""
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["fuser.0.weight"][::2] = 0
    torch.save(content, tmp_path / "pruned.pth")
    return tmp_path / "pruned.pth"


def test_a_pruned_checkpoint(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "onnx"
    assert main([str(pruned), "--out", str(out), "--parts", "fuser,head", "--opset", "19", "--json"]) == 0
    told, err = capsys.readouterr()
    assert not err
    record = json.loads((out / "export.json").read_text())
    assert {**record, "written": json.loads(told)["written"]} == json.loads(told)
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "fuser.onnx", "head.bbox.onnx"]
    assert record["checkpoint"] == {"path": str(pruned), "sha256": sha256(pruned)}
    assert (record["model"], record["opset"]) == ("bevfusion-tiny", 19)
    assert record["config"]["box_convention"] == "mit"
    for name, facts in record["files"].items():
        written = onnx.load(out / name)
        assert facts["sha256"] == sha256(out / name)
        assert written.opset_import[0].version == 19
        assert json.loads(written.metadata_props[0].value)["checkpoint"]["sha256"] == sha256(pruned)
        assert [entry.name for entry in written.graph.input] == list(facts["inputs"])
        assert max(output["difference"] for output in facts["outputs"].values()) < 1e-5
    weights = [onnx.numpy_helper.to_array(entry) for entry in onnx.load(out / "fuser.onnx").graph.initializer]
    fuser = next(weight for weight in weights if weight.shape == (32, 48, 3, 3))
    assert not fuser[::2].any()
    assert fuser[1::2].any()


def test_the_table(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint), "--out", str(tmp_path), "--parts", "decoder"]) == 0
    out = capsys.readouterr().out
    assert "bevfusion-tiny: ONNX opset 18, float32, one sample" in out
    assert "camera 1x16x30x30, lidar 1x32x30x30" in out
    assert f"wrote: {tmp_path / 'fuser.onnx'}\nwrote: {tmp_path / 'export.json'}\n" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "neck"], "no part 'neck': --parts takes camera, fuser, decoder, head"),
        (["--parts", ""], "no part ''"),
        (["--opset", "17"], "--opset 17: give 18 to 23"),
        (["--opset", "24"], "--opset 24: give 18 to 23"),
        (["--cameras", "0"], "--cameras 0: give 1 or more"),
        (["--image-size", "64"], "--image-size 64: give height x width"),
        (["--out", "/no/such/place"], "there is no folder /no/such"),
        (["--out", __file__], "is a file: give a folder"),
        (["--model", "resnet"], "there is no model 'resnet'"),
    ],
)
def test_bad_options(
    options: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), "--out", str(tmp_path / "onnx"), *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_package_that_is_not_there_is_told_before_a_file_is_opened(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(tmp_path / "no.pth"), "--out", str(tmp_path / "onnx")]) == 2
    assert f"need {package}, not installed here: pip install '.[export]'" in capsys.readouterr().err
    assert not (tmp_path / "onnx").exists()


def test_one_wrong_file_and_none_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file is too far from torch, after the first was right."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "fuser.onnx").write_text("of an earlier export")
    checks: list[str] = []

    def too_far(found: torch.Tensor, expected: torch.Tensor) -> float:
        checks.append("")
        return 0.0 if len(checks) == 1 else 1.0

    monkeypatch.setattr(onnx_file, "_difference", too_far)
    for out in (kept, tmp_path / "new"):
        checks.clear()
        assert main([str(checkpoint), "--out", str(out), "--parts", "decoder,head"]) == 2
        assert "head.bbox.onnx: onnxruntime differs from torch in score by 1.0e+00" in capsys.readouterr().err
    assert [path.name for path in kept.iterdir()] == ["fuser.onnx"]
    assert (kept / "fuser.onnx").read_text() == "of an earlier export"
    assert not (tmp_path / "new").exists()
