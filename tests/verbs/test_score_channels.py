"""The score verb on channels, and the prune verb with what it wrote."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import pytest
import torch

import fastalter
from fastalter.checkpoint import load_checkpoint, read_checkpoint
from fastalter.prune import main as prune
from fastalter.report.summary import OF_CHANNELS
from fastalter.score import main
from fastalter.structure.mask import ChannelMask

QUICK = ["--batches", "1", "--batch-size", "1", "--granularity", "channel"]


@dataclass
class Run:
    folder: Path
    found: dict
    stderr: str


@pytest.fixture(scope="module")
def scored(checkpoint, tmp_path_factory) -> Run:
    """One run with every output and --json: half of the FLOPs, two channels of every layer at least."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--ratio", "0.5", "--budget", "flops", "--min-keep", "2", "--method", "deci", "--seed", "4", "--json"]
    files = {"--out": "s.safetensors", "--mask": "m.safetensors", "--plot": "kept.png"}
    outputs = [part for option, name in files.items() for part in (option, str(folder / name))]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main([str(checkpoint), *QUICK, *options, *outputs]) == 0
    assert out.getvalue().count("\n") == 1
    return Run(folder, json.loads(out.getvalue()), err.getvalue())


def test_json_counts_channels_and_tells_what_the_compacted_network_lacks(scored):
    found = scored.found
    keys = ["method", "model", "data", "synthetic", "seed", "branches", "total", "threshold", *OF_CHANNELS, "seconds"]
    assert list(found) == keys
    assert (found["granularity"], found["budget"], found["min_keep"], found["round_to"]) == (
        "channel",
        "flops",
        2,
        None,
    )
    assert 0.5 <= found["reached"]["flops"] < 0.52
    assert f"note: {len(found['raised'])} of " in scored.stderr
    assert "layers were raised to --min-keep 2: " in scored.stderr
    assert sorted(found["reached"]) == ["channels", "flops", "parameters"]
    mask = fastalter.Mask.load(scored.folder / "m.safetensors")
    for branch, row in found["branches"].items():
        assert row["prunable"] == sum(e.size for e in mask.layout.entries if e.branch == branch)
        assert row["kept"] == mask.kept_by_branch()[branch]
        assert row["parameters"] > row["prunable"] > row["kept"] > 0
    assert found["total"]["kept"] == mask.kept_total


def test_the_artifacts_are_of_channels_and_agree(scored, checkpoint):
    scores, mask = (
        fastalter.Scores.load(scored.folder / "s.safetensors"),
        fastalter.Mask.load(scored.folder / "m.safetensors"),
    )
    assert type(mask) is ChannelMask
    assert torch.equal(scores.mask(0.5, budget="flops", min_keep=2).bits, mask.bits)
    assert min(mask.kept[e.name] for e in mask.layout.entries if e.size > 1) >= 2
    for artifact in (scores, mask):
        assert artifact.metadata["checkpoint"]["path"] == str(checkpoint)
    height, width, _ = matplotlib.image.imread(scored.folder / "kept.png").shape
    assert 800 < height < 4000
    assert 1200 < width < 3000


def test_prune_zeroes_the_channels_in_the_layout_that_came_in(scored, checkpoint, tmp_path, capsys):
    out = tmp_path / "pruned.pth"
    mask = fastalter.Mask.load(scored.folder / "m.safetensors")
    options = ["--mask", str(scored.folder / "m.safetensors"), "--out", str(out), "--force"]  # synthetic data
    assert prune([str(checkpoint), *options]) == 0
    said = capsys.readouterr().out
    assert "Layers that lose most" in said
    assert re.search(r"^layer +branch +shape +channels +kept %$", said, re.MULTILINE)
    before, after = load_checkpoint(checkpoint), load_checkpoint(out)
    assert (after.layout, after.config) == (before.layout, before.config)
    weights = mask.weights()
    for name, parameter in after.model.named_parameters():
        kept = weights[name] if name in weights.layout else torch.ones_like(parameter, dtype=torch.bool)
        was = before.model.get_parameter(name).detach()
        assert torch.equal(parameter.detach(), torch.where(kept, was, torch.zeros_like(was))), name
    assert sorted(read_checkpoint(out).state) == sorted(read_checkpoint(checkpoint).state)
    record = json.loads((tmp_path / "pruned.pth.json").read_text())
    assert (record["unit"], record["kept"], record["prunable"]) == ("channels", mask.kept_total, mask.layout.size)


def test_prune_makes_the_mask_of_channel_scores(scored, checkpoint, tmp_path, capsys):
    out, kept = tmp_path / "p.pth", tmp_path / "m"
    options = ["--scores", str(scored.folder / "s.safetensors"), "--ratio", "0.3", "--mask-out", str(kept)]
    assert prune([str(checkpoint), *options, "--out", str(out), "--force"]) == 0
    mask = fastalter.Mask.load(kept)
    assert type(mask) is ChannelMask
    assert mask.kept_total == round(0.7 * mask.layout.size)
    assert "ratio 0.3 of the channels: the " in capsys.readouterr().out


def test_tables_say_channels(checkpoint, tmp_path, capsys):
    options = ["--method", "random", "--ratio", "0.3", "--round-to", "8", "--budget", "parameters"]
    assert main([str(checkpoint), *QUICK, *options, "--mask", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    mask = fastalter.Mask.load(tmp_path / "m")
    assert f"ratio 0.3 of the parameters: the {mask.kept_total:,} highest scores stay, down to" in said
    shares = ", ".join(f"{100 * share:.1f} % of the {name}" for name, share in mask.metadata["reached"].items())
    assert f"compacted, it is without {shares}" in said
    assert re.search(r"^layer +branch +shape +channels +kept %$", said, re.MULTILINE)
    heads = [e for e in mask.layout.entries if ".heads" in e.name]
    assert heads
    wide = [e for e in mask.layout.entries if e not in heads and e.size >= 32]
    assert wide
    assert all(mask.kept[e.name] % 8 == 0 or mask.kept[e.name] == e.size for e in wide)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--granularity", "layer"], "--granularity is 'layer': give one of weight, channel"),
        ([*QUICK, "--budget", "time"], "--budget is 'time': give one of channels, parameters, flops"),
        ([*QUICK, "--round-to", "7"], "--round-to is '7': give one of 8, 16"),
        ([*QUICK, "--min-keep", "0"], "min_keep is 0; give each layer's least share"),
        ([*QUICK, "--min-keep", "some"], "--min-keep some: give a share of each layer"),
        (
            [*QUICK, "--n-m", "2:4", "--ratio", "0.5"],
            "--n-m 2:4 is for single weights; leave it or --granularity channel",
        ),
        (["--n-m", "2:4", "--min-keep", "1"], "--min-keep: with --n-m 2:4 every layer keeps its share anyway"),
        (["--budget", "flops"], "--budget goes with --granularity channel"),
        (["--round-to", "8"], "--round-to goes with --granularity channel"),
        ([*QUICK, "--method", "synflow"], "method 'synflow' cannot score channels: its flow"),
        ([*QUICK, "--method", "imp"], "method 'imp' cannot score channels: its rounds"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(options, says, tmp_path, capsys):
    missing = tmp_path / "no.pth"
    assert main([str(missing), *options, "--mask", str(tmp_path / "m")]) == 2
    streams = capsys.readouterr()
    assert says in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_ratio_that_leaves_a_layer_nothing_is_refused_and_nothing_written(scored, checkpoint, tmp_path, capsys):
    options = ["--scores", str(scored.folder / "s.safetensors"), "--ratio", "0.999", "--out", str(tmp_path / "p.pth")]
    assert prune([str(checkpoint), *options]) == 2
    says = (
        r"channels: one channel of each of the \d+ sets need more than a ratio of 0.999 leaves; prune at most a ratio"
    )
    assert re.search(says, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_every_layer_of_single_weights(checkpoint, tmp_path, capsys):
    options = ["--batches", "1", "--batch-size", "1", "--method", "snip", "--ratio", "0.95", "--min-keep", "0.02"]
    assert main([str(checkpoint), *options, "--mask", str(tmp_path / "m")]) == 0
    mask = fastalter.Mask.load(tmp_path / "m")
    assert all(mask.kept[e.name] >= 0.02 * e.size for e in mask.layout.entries)
    assert re.search(
        rf"note: {len(mask.metadata['raised'])} of 127 layers were raised to --min-keep 0.02: ", capsys.readouterr().out
    )
