"""Every mistake that reaches the verb: one line on stderr, exit status 2, nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastalter.score import main
from tests.data.tiny_nuscenes import write_tiny_nuscenes

RANDOM = ["--model", "bevfusion-tiny", "--batches", "1", "--batch-size", "1"]


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the verb, wants it to refuse, returns the line it printed."""

    def check(*arguments: object) -> str:
        outputs = {name: tmp_path / "out" / name for name in ("scores", "mask", "kept.png")}
        outputs["scores"].parent.mkdir(exist_ok=True)
        given = ["--out", outputs["scores"], "--mask", outputs["mask"], "--plot", outputs["kept.png"]]
        status = main([str(a) for a in (*given, *arguments)])
        streams = capsys.readouterr()
        assert status == 2
        assert streams.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", streams.err), streams.err
        assert list(outputs["scores"].parent.iterdir()) == []
        return streams.err

    return check


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ratio", "1"], r"--ratio 1 is outside \[0, 1\): give"),
        (["--ratio", "-0.1"], r"--ratio -0.1 is outside"),
        (["--ratio", "nan"], r"--ratio nan is outside"),
        (["--ratio", "most"], r"'--ratio'"),
        (["--batches", "0"], r"--batches 0: give 1 or more"),
        (["--batches", "-3"], r"--batches -3: give 1 or more"),
        (["--batch-size", "0"], r"--batch-size 0: give 1 or more"),
        (["--sweeps", "-1"], r"--sweeps -1: give 0 or more"),
        (["--seed", "-1"], r"--seed -1: give 0 or more"),
        (["--seed", "1" + "0" * 30], r"--seed"),
        (["--lr", "-1"], r"--lr -1: give 0 or more"),
        (["--lr", "inf"], r"--lr inf: give a finite number"),
        (["--beta", "nan"], r"--beta nan: give a finite number"),
        (["--reri-data", "both"], r"--reri-data is 'both': give one of paired, paper"),
        (["--bn", "eval"], r"--bn is 'eval': give one of train, frozen"),
        (["--method", "magic"], r"--method is 'magic': give one of altermoma"),
        (["--device", "tpu"], r"--device is 'tpu': give one of cpu, cuda"),
        (["--image-size", "64"], r"--image-size 64: give height x width"),
        (["--image-size", "60x100"], r"60x100"),
        (["--plot", "kept.gif"], r"--plot kept.gif is 'gif': give one of png, pdf, svg"),
        (["--plot", "/no/such/place/kept.png"], r"no folder /no/such/place; make it"),
        (["--out", "/"], r"--out / is a folder"),
        (["--model", "bevfusion-huge"], r"bevfusion-huge.* bevfusion-tiny"),
        (["--colour", "red"], r"--colour"),
        (["a.pth", "b.pth"], r"b.pth"),
        (["--data", "kitti:/x"], r"kitti:/x.*nuscenes:/path"),
        (["--data", "frames:/no/such/folder"], r"/no/such/folder"),
        (["--data", "nuscenes:/no/such/folder"], r"/no/such/folder"),
    ],
)
def test_wrong_options(refused, options, says):
    assert re.search(says, refused(*RANDOM, *options))


def test_nothing_to_score(refused):
    assert "give a checkpoint file, or --model bevfusion-tiny" in refused()


@pytest.mark.skipif(torch.cuda.is_available(), reason="FASTALTER_GROUND_TRUTH aside, this needs a machine without CUDA")
def test_cuda_where_there_is_none(refused):
    assert "use --device cpu" in refused(*RANDOM, "--device", "cuda")


def test_outputs_may_not_be_the_checkpoint(refused, checkpoint):
    before = checkpoint.read_bytes()
    assert "is also the checkpoint" in refused(checkpoint, "--out", checkpoint)
    assert checkpoint.read_bytes() == before


class Exploit:
    """Unpickling this would make a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


def test_missing_file(refused, tmp_path):
    assert str(tmp_path / "no.pth") in refused(tmp_path / "no.pth")


def test_folder_in_place_of_a_file(refused, tmp_path):
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize("length", [0, 100, 50_000])
def test_truncated_file(refused, checkpoint, tmp_path, length):
    path = tmp_path / "cut.pth"
    path.write_bytes(checkpoint.read_bytes()[:length])
    assert str(path) in refused(path)


def test_not_a_checkpoint(refused, tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("these are notes\n" * 100)
    assert str(path) in refused(path)


def test_a_pickle_that_would_execute_code(refused, checkpoint, tmp_path):
    path, place = tmp_path / "bad.pth", tmp_path / "executed"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "state_dict": Exploit(place)}, path)
    assert str(path) in refused(path)
    assert not place.exists()


def test_unknown_architecture(refused, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": torch.nn.Linear(3, 4).state_dict()}, path)
    assert str(path) in refused(path)


def damaged(checkpoint: Path, path: Path, key: str, change) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"][key] = change(content["state_dict"][key])
    torch.save(content, path)
    return path


KEY = "decoder.backbone.blocks.1.3.weight"


def test_wrong_shape(refused, checkpoint, tmp_path):
    line = refused(damaged(checkpoint, tmp_path / "shape.pth", KEY, lambda weight: weight[:, :-1]))
    assert KEY in line
    assert "shape.pth" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(refused, checkpoint, tmp_path, value):
    def spoil(weight: torch.Tensor) -> torch.Tensor:
        weight.view(-1)[7] = value
        return weight

    line = refused(damaged(checkpoint, tmp_path / "nan.pth", KEY, spoil))
    assert KEY in line
    assert "nan.pth" in line


def test_dataset_without_tables(refused, tmp_path):
    root = tmp_path / "empty"
    root.mkdir()
    assert str(root) in refused(*RANDOM, "--data", f"nuscenes:{root}")


@pytest.mark.parametrize("pattern", ["samples/CAM_BACK/*", "samples/LIDAR_TOP/*"])
def test_missing_sensor_file(refused, tmp_path, pattern):
    root = tmp_path / "nuscenes"
    write_tiny_nuscenes(root)
    files = sorted(root.glob(pattern))
    assert files
    for file in files:
        file.unlink()
    line = refused(*RANDOM, "--data", f"nuscenes:{root}")
    assert any(file.name in line for file in files)


def test_from_the_shell_it_is_one_line_too(tmp_path):
    command = [sys.executable, "-m", "fastalter.score", "no.pth", "--out", "s"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]*no\.pth[^\n]*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []
