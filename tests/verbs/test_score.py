"""The score verb on the tiny model, as a user runs it."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import pytest
import torch

import fastalter
from fastalter.assets import EMBEDDED, provenance
from fastalter.pipeline import ScoreOptions
from fastalter.score import main

QUICK = ["--batches", "1", "--batch-size", "1"]


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastalter.score", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@dataclass
class Run:
    folder: Path
    found: dict
    stderr: str


@pytest.fixture(scope="module")
def scored(checkpoint, tmp_path_factory) -> Run:
    """One run from the shell with every output and --json."""
    folder = tmp_path_factory.mktemp("run")
    outputs = ["--out", "s.safetensors", "--mask", "m.safetensors", "--plot", "kept.png"]
    done = run(checkpoint, *QUICK, "--ratio", "0.9", "--seed", "4", *outputs, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return Run(folder, json.loads(done.stdout), done.stderr)


def test_json_is_one_object_with_the_promised_keys(scored):
    found = scored.found
    assert list(found) == ["method", "model", "data", "synthetic", "seed", "branches", "total", "threshold", "seconds"]
    assert (found["method"], found["model"], found["seed"]) == ("altermoma", "bevfusion-tiny", 4)
    assert found["data"] == "synthetic: 1 x 1 samples"
    assert found["synthetic"] is True
    assert list(found["branches"]) == ["camera", "lidar", "fusion"]
    for key in ("parameters", "prunable", "kept"):
        assert found["total"][key] == sum(branch[key] for branch in found["branches"].values())
    assert found["total"]["kept"] == round(0.1 * found["total"]["prunable"])
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert all(re.match("note: |warning: ", line) for line in scored.stderr.splitlines())


def test_counts_are_those_of_the_model(scored):
    geometry = ("dx", "bx", "nx", "frustum")
    named = fastalter.models.build("bevfusion-tiny").named_parameters()
    learned = {name: p.numel() for name, p in named if name.rsplit(".", 1)[-1] not in geometry}
    branches = scored.found["branches"]
    for branch in ("camera", "lidar"):
        inside = sum(size for name, size in learned.items() if name.startswith(f"encoders.{branch}."))
        assert branches[branch]["parameters"] == inside
    assert scored.found["total"]["parameters"] == sum(learned.values())


def test_the_artifacts_load_and_agree_with_what_was_printed(scored, checkpoint):
    scores = fastalter.Scores.load(scored.folder / "s.safetensors")
    mask = fastalter.Mask.load(scored.folder / "m.safetensors")
    kept = {name: branch["kept"] for name, branch in scored.found["branches"].items()}
    assert mask.kept_by_branch() == kept
    assert sum(int(mask[name].sum()) for name in mask) == scored.found["total"]["kept"]
    assert mask.threshold == scored.found["threshold"]
    again = scores.mask(ratio=0.9)
    assert all(torch.equal(again[name], mask[name]) for name in mask)
    shapes = {name: p.shape for name, p in fastalter.models.build("bevfusion-tiny").named_parameters()}
    assert all(scores[name].shape == shapes[name] for name in scores)
    for artifact in (scores, mask):
        assert artifact.metadata["model"] == "bevfusion-tiny"
        assert artifact.metadata["checkpoint"]["path"] == str(checkpoint)
        assert len(artifact.metadata["checkpoint"]["sha256"]) == 64


def test_the_plot_is_a_picture_that_fits_the_layers(scored):
    height, width, _ = matplotlib.image.imread(scored.folder / "kept.png").shape
    assert 800 < height < 3000
    assert 1200 < width < 3000


def test_only_the_outputs_are_left_behind(scored):
    assert sorted(p.name for p in scored.folder.iterdir()) == ["kept.png", "m.safetensors", "s.safetensors"]


def test_the_same_command_gives_the_same_scores(scored, checkpoint, tmp_path):
    assert main([str(checkpoint), *QUICK, "--seed", "4", "--out", str(tmp_path / "again")]) == 0
    again, first = fastalter.Scores.load(tmp_path / "again"), fastalter.Scores.load(scored.folder / "s.safetensors")
    assert torch.equal(again.flat, first.flat)


def test_random_weights_are_said_and_stamped(tmp_path, capsys):
    out, mask = tmp_path / "s", tmp_path / "m"
    assert main(["--model", "bevfusion-tiny", *QUICK, "--out", str(out), "--mask", str(mask)]) == 0
    streams = capsys.readouterr()
    name = "bevfusion-tiny (random weights, seed 0)"
    assert name in streams.out
    assert "Layers that lose most" in streams.out
    assert streams.err == ""  # no terminal: no progress
    for artifact in (fastalter.Scores.load(out), fastalter.Mask.load(mask)):
        assert artifact.metadata["model"] == name
        counts = artifact.metadata.get("branches") or fastalter.Scores.load(out).metadata["branches"]
        assert f"{counts['camera']['prunable']:,}" in streams.out


def test_options_reach_the_scoring(tmp_path, capsys):
    out = tmp_path / "s"
    options = ["--lr", "0.01", "--alpha", "2", "--beta", "0.5", "--reri-data", "paper", "--bn", "frozen", "--direct"]
    small = ["--batches", "1", "--batch-size", "2", "--image-size", "32x88"]
    assert main(["--model", "bevfusion-tiny", *small, *options, "--out", str(out)]) == 0
    settings = fastalter.Scores.load(out).metadata["settings"]
    expected = {"lr": 0.01, "alpha": 2.0, "beta": 0.5, "reri_data": "paper", "bn": "frozen", "direct": True}
    expected |= {"reactivation_batches": 1, "batch_size": 2, "image_size": [32, 88], "sweeps": 0}
    assert settings == expected


def test_the_verb_and_the_api_have_the_same_defaults():
    api = {name: p.default for name, p in inspect.signature(fastalter.score_model).parameters.items()}
    verb = ScoreOptions()
    for name in ("method", "ratio", "alpha", "beta", "reri_data", "bn", "direct", "seed"):
        assert getattr(verb, name) == api[name], name
    assert fastalter.Reactivation(batches=verb.batches, lr=verb.lr) == fastalter.Reactivation()


def test_ctrl_c_stops_with_130_and_writes_nothing(tmp_path, monkeypatch, capsys):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastalter.scoring.preserved", interrupt)
    assert main(["--model", "bevfusion-tiny", *QUICK, "--out", str(tmp_path / "s")]) == 130
    assert capsys.readouterr() == ("", "stopped; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_ours_is_no_mistake_of_the_users(tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr("fastalter.scoring.preserved", fail)
    with pytest.raises(IndexError):
        main(["--model", "bevfusion-tiny", *QUICK, "--out", str(tmp_path / "s")])
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_checkpoint_is_scored_on_its_own_kind_of_data(tmp_path, capsys):
    assert main([str(EMBEDDED), *QUICK, "--mask", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    assert "bevfusion-tiny, altermoma on synthetic: 1 x 1 samples" in said
    assert "for a mask to use, give its own --data" not in said
    mask = fastalter.Mask.load(tmp_path / "m")
    assert mask.metadata["synthetic"] is True
    assert mask.metadata["checkpoint"]["sha256"] == provenance()["sha256"]


def test_a_foreign_checkpoint_on_synthetic_data_is_warned_of(checkpoint, capsys):
    assert main([str(checkpoint), *QUICK]) == 0
    said = capsys.readouterr()
    assert "warning: scored on synthetic data, which this model was not trained for" in said.out + said.err


def test_every_method_has_its_settings_from_the_command_line(tmp_path, capsys):
    out, mask = tmp_path / "s", tmp_path / "m"
    options = ["--method", "prospr", "--set", "steps=1", "--set", "lr=1e-2", "--set", "order=first"]
    written = ["--out", str(out), "--mask", str(mask)]
    assert main(["--model", "bevfusion-tiny", *QUICK, *options, "--seed", "2", *written]) == 0
    scores = fastalter.Scores.load(out)
    assert scores.metadata["method"] == "prospr"
    assert scores.metadata["settings"].items() >= {"steps": 1, "lr": 0.01, "order": "first", "batch_size": 1}.items()
    assert "alpha" not in scores.metadata["settings"]
    assert "bevfusion-tiny (random weights, seed 2), prospr on synthetic" in capsys.readouterr().out
    model = fastalter.models.build("bevfusion-tiny", seed=2)
    batches = fastalter.data.load("synthetic", config=model.config, batches=1, batch_size=1, seed=2)
    settings = {"steps": 1, "lr": 0.01, "order": "first"}
    api = fastalter.score_model(model, batches, method="prospr", settings=settings, seed=2, progress=False)
    assert torch.equal(api.flat, scores.flat)


def test_a_method_for_one_ratio_is_scored_for_the_ratio_that_was_asked(tmp_path):
    out = tmp_path / "s"
    options = ["--method", "imp", "--set", "rounds=2", "--set", "steps=1", "--ratio", "0.95"]
    assert main(["--model", "bevfusion-tiny", *QUICK, *options, "--out", str(out)]) == 0
    scores = fastalter.Scores.load(out)
    assert scores.metadata["for_ratio"] == 0.95
    assert scores.mask(0.95).kept_total == round(0.05 * scores.layout.size)


def test_terms_are_kept_on_request(tmp_path):
    out = tmp_path / "s"
    assert main(["--model", "bevfusion-tiny", *QUICK, "--beta", "0.5", "--terms", "--out", str(out)]) == 0
    scores = fastalter.Scores.load(out)
    remade = scores.terms["deci"] - 0.5 * scores.terms["reri"]
    assert torch.allclose(remade, scores.flat, rtol=0, atol=1e-6 * float(scores.flat.abs().max()))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "snip", "--set", "lr=1"], "method 'snip' has no setting 'lr'; it takes: none"),
        (["--method", "imp", "--set", "rounds=many"], "method 'imp': rounds is 'many'; give an integer, such as 5"),
        (["--method", "imp", "--set", "rounds"], "--set rounds: give NAME=VALUE, such as --set lr=0.01"),
        (["--method", "imp", "--set", "lr=1", "--set", "lr=2"], "--set lr: given twice; give it once"),
        (["--method", "imp", "--set", "lr=nan"], "method 'imp': lr is 'nan'; give a finite number"),
        (["--method", "imp", "--set", "rounds=0"], "imp: rounds=0"),
        (["--method", "synflow", "--set", "forward=run"], "synflow: forward is 'run'; set forward=function"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, says, tmp_path, capsys):
    out = tmp_path / "s"
    assert main(["--model", "bevfusion-tiny", *QUICK, *options, "--out", str(out)]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_of_four_from_the_command_line(tmp_path, capsys):
    out, mask = tmp_path / "s", tmp_path / "m"
    options = ["--model", "bevfusion-tiny", *QUICK, "--method", "snip", "--n-m", "2:4"]
    assert main([*options, "--out", str(out), "--mask", str(mask)]) == 0
    said = capsys.readouterr().out
    assert "ratio 0.5: " in said
    assert "2 of every 4 inputs in 84 of 127 weights" in said
    assert "note: 1 of 127 weights stay dense, decoder.neck.deblocks.1.0.weight: ConvTranspose2d" in said
    made = fastalter.Mask.load(mask)
    assert torch.equal(made.bits, fastalter.Scores.load(out).mask(n_m=(2, 4)).bits)
    assert (made.metadata["n_m"], len(made.metadata["dense"])) == ([2, 4], 43)


def test_a_pattern_sets_the_ratio_of_a_method_for_one_ratio(tmp_path):
    out = tmp_path / "s"
    options = ["--method", "synflow", "--set", "iterations=2", "--n-m", "1:4", "--ratio", "0.75"]
    assert main(["--model", "bevfusion-tiny", *QUICK, *options, "--out", str(out)]) == 0
    assert fastalter.Scores.load(out).metadata["for_ratio"] == 0.75


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--n-m", "2:4", "--ratio", "0.8"], "--ratio 0.8: --n-m 2:4 prunes 0.5; leave --ratio out"),
        (["--n-m", "4:2"], "--n-m 4:2: give how many of how many inputs stay, such as 2:4"),
        (["--n-m", "0:4"], "--n-m 0:4: give how many"),
        (["--n-m", "2:65"], "--n-m 2:65: give how many"),
        (["--n-m", "half"], "--n-m half: give how many"),
    ],
)
def test_patterns_that_cannot_be_are_refused(options, says, tmp_path, capsys):
    out = tmp_path / "s"
    assert main(["--model", "bevfusion-tiny", *QUICK, *options, "--out", str(out)]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
