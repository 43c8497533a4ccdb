"""The prune verb: the pruned file in the layout it came in, its record, and masks that are not this checkpoint's."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fastalter
from fastalter.altermoma import Layout
from fastalter.assets import EMBEDDED, provenance
from fastalter.checkpoint import load_checkpoint, read_checkpoint
from fastalter.fusion import adapt, find_weights
from fastalter.masks import emptied, select
from fastalter.models import build
from fastalter.prune import main
from tests.checkpoint.files import FROM_NATIVE, in_layout

FAMILIES = ("mit", "mmdet3d")
SPCONV = "encoders.lidar.backbone.encoder_layers.encoder_layer1.0.conv1.weight"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def layout_of(model: torch.nn.Module) -> Layout:
    fusion = adapt(model)
    return Layout.of(find_weights(fusion), fusion.branch_names)


def facts_of(checkpoint: Path, **other: object) -> dict:
    """What the score verb writes into a mask and its scores."""
    origin = {"path": str(checkpoint), "sha256": digest(checkpoint), "layout": "mit"}
    facts = {"method": "altermoma", "model": "bevfusion-tiny", "checkpoint": origin, "data": "nuscenes v1.0-mini"}
    return {**facts, "synthetic": False, "seed": 4, **other}


def score_over(layout: Layout) -> torch.Tensor:
    """Random scores; every layer has three that any threshold leaves."""
    score = torch.rand(layout.size, generator=torch.Generator().manual_seed(9))
    for entry in layout.entries:
        score[entry.offset : entry.offset + 3] += 1
    return score


@pytest.fixture(scope="module")
def layout() -> Layout:
    return layout_of(build("bevfusion-tiny", seed=1))


@pytest.fixture
def mask_file(layout, tmp_path):
    """Writes a mask over the tiny model's weights with this metadata."""

    def write(facts: dict, ratio: float = 0.8, name: str = "mask.safetensors") -> Path:
        mask = select(score_over(layout), layout, round((1 - ratio) * layout.size), ratio=ratio, metadata=facts)
        mask.save(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def scores_file(layout, checkpoint, tmp_path) -> Path:
    """Scores of which a common threshold at 0.9 leaves nothing to two layers."""
    score = score_over(layout)
    for entry in layout.entries[3:5]:
        score[entry.offset : entry.offset + entry.size] -= 5
    fastalter.Scores(score, layout, facts_of(checkpoint, settings={"alpha": 1.0})).save(tmp_path / "scores.safetensors")
    return tmp_path / "scores.safetensors"


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the verb, wants it to refuse and to write nothing, returns the line it printed."""

    def check(*arguments: object) -> str:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        status = main([str(a) for a in (*arguments, *([] if "--out" in arguments else ["--out", out / "pruned.pth"]))])
        streams = capsys.readouterr()
        assert status == 2
        assert streams.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", streams.err), streams.err
        assert list(out.iterdir()) == []
        return streams.err

    return check


# ---- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "sparse", "container"),
    [
        *((family, sparse, "zip") for family in FAMILIES for sparse in FROM_NATIVE),
        ("mmdet3d", "spconv2", "safetensors"),
    ],
)
def test_the_pruned_file_is_the_old_one_with_zeros(mask_file, tmp_path, family, sparse, container):
    native = build("bevfusion-tiny", seed=1).state_dict()
    state = in_layout(native, family, sparse, "module.")
    source, out = tmp_path / "in.pth", tmp_path / "pruned.pth"
    if container == "safetensors":
        save_file(state, source)
    else:
        torch.save({"meta": {"epoch": 6}, "state_dict": state, "optimizer": {"step": 9}}, source)
    path = mask_file(facts_of(source))
    assert main([str(source), "--mask", str(path), "--out", str(out)]) == 0

    before, after, mask = read_checkpoint(source), read_checkpoint(out), fastalter.Mask.load(path)
    assert (after.container, after.state_key) == (before.container, before.state_key)
    assert list(after.root) == list(before.root)
    assert list(after.state) == list(before.state)
    expected = in_layout(
        {key: value * mask[key] if key in mask.layout else value for key, value in native.items()},
        family,
        sparse,
        "module.",
    )
    for key, value in expected.items():
        assert after.state[key].dtype == before.state[key].dtype
        assert torch.equal(after.state[key], value), key
    assert not torch.equal(after.state[key_of(before, SPCONV)], before.state[key_of(before, SPCONV)])
    loaded = load_checkpoint(out)
    assert (loaded.layout, loaded.sparse_layout) == (family, sparse)
    for name in mask:
        assert not loaded.model.get_parameter(name)[~mask[name]].any(), name
    zeros = sum(int((loaded.model.get_parameter(name) == 0).sum()) for name in mask)
    assert zeros == mask.layout.size - mask.kept_total


def key_of(archive, key: str) -> str:
    """The archive's key of a sparse weight, in whatever family."""
    last = key.split("encoder_layers.")[1]
    return next(name for name in archive.state if name.endswith(last))


def test_the_record_says_what_it_was_made_from(mask_file, checkpoint, tmp_path):
    path, out = mask_file(facts_of(checkpoint)), tmp_path / "pruned.pth"
    assert main([str(checkpoint), "--mask", str(path), "--out", str(out)]) == 0
    record, mask = json.loads((tmp_path / "pruned.pth.json").read_text()), fastalter.Mask.load(path)
    assert record["kind"] == "fastalter pruned"
    assert record["file"] == {"path": str(out), "sha256": digest(out)}
    assert record["checkpoint"]["sha256"] == digest(checkpoint)
    assert (record["checkpoint"]["layout"], record["checkpoint"]["sparse_layout"]) == ("mit", "spconv2")
    assert record["mask"] == {"path": str(path), "sha256": digest(path)}
    assert record["mask_bits_sha256"] == hashlib.sha256(mask.bits.numpy().tobytes()).hexdigest()
    assert (record["ratio"], record["kept"], record["prunable"]) == (0.8, mask.kept_total, mask.layout.size)
    made_by = record["made_by"]
    assert (made_by["method"], made_by["data"], made_by["seed"]) == ("altermoma", "nuscenes v1.0-mini", 4)
    assert made_by["torch_version"] == record["torch_version"] == str(torch.__version__)
    assert record["forced"] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.safetensors", "pruned.pth", "pruned.pth.json"]


def test_the_same_command_writes_the_same_bytes(mask_file, checkpoint, tmp_path):
    path, out = mask_file(facts_of(checkpoint)), tmp_path / "pruned.pth"
    command = [str(checkpoint), "--mask", str(path), "--out", str(out)]
    assert main(command) == 0
    first = {name: value.clone() for name, value in read_checkpoint(out).state.items()}
    record = json.loads((tmp_path / "pruned.pth.json").read_text())
    assert main(command) == 0
    again = json.loads((tmp_path / "pruned.pth.json").read_text())
    assert all(torch.equal(value, first[name]) for name, value in read_checkpoint(out).state.items())
    assert again == record


def test_tables_are_those_of_the_mask(mask_file, checkpoint, tmp_path, capsys):
    path = mask_file(facts_of(checkpoint))
    assert main([str(checkpoint), "--mask", str(path), "--out", str(tmp_path / "p.pth")]) == 0
    said, mask = capsys.readouterr(), fastalter.Mask.load(path)
    assert said.err == ""
    assert "bevfusion-tiny, altermoma on nuscenes v1.0-mini, seed 4" in said.out
    assert "Layers that lose most" in said.out
    kept = mask.kept_by_branch()
    for branch, count in kept.items():
        assert re.search(rf"^{branch} .* {count:,} ", said.out, re.MULTILINE)
    assert f"wrote: {tmp_path / 'p.pth'}\nwrote: {tmp_path / 'p.pth.json'}\n" in said.out
    assert "warning" not in said.out


def test_json_from_the_shell_is_one_object(mask_file, checkpoint, tmp_path):
    path = mask_file(facts_of(checkpoint))
    command = [sys.executable, "-m", "fastalter.prune", checkpoint, "--mask", path, "--out", "p.pth", "--json"]
    done = subprocess.run([str(a) for a in command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["record"] == json.loads((tmp_path / "p.pth.json").read_text())
    assert found["written"] == ["p.pth", "p.pth.json"]
    assert found["total"]["kept"] == found["record"]["kept"]
    assert found["branches"]["camera"]["parameters"] > found["branches"]["camera"]["prunable"] > 0


# ---- from scores ----------------------------------------------------------------------------------------------------


def test_scores_and_a_ratio_do_as_well_as_a_mask(scores_file, checkpoint, layout, tmp_path, capsys):
    out, kept = tmp_path / "p.pth", tmp_path / "m.safetensors"
    command = [
        str(checkpoint),
        "--scores",
        str(scores_file),
        "--ratio",
        "0.9",
        "--out",
        str(out),
        "--mask-out",
        str(kept),
    ]
    assert main(command) == 0
    mask = fastalter.Mask.load(kept)
    assert torch.equal(mask.bits, fastalter.Scores.load(scores_file).mask(0.9).bits)
    assert mask.metadata["checkpoint"]["sha256"] == digest(checkpoint)  # so that it can be used with --mask
    record = json.loads((tmp_path / "p.pth.json").read_text())
    assert record["scores"] == {"path": str(scores_file), "sha256": digest(scores_file)}
    assert record["mask"] == {"path": str(kept), "sha256": digest(kept)}
    lost = [entry.name.removesuffix(".weight") for entry in layout.entries[3:5]]
    assert emptied(mask) == [f"{name}.weight" for name in lost]
    assert f"warning: 2 of 127 layers lose every weight: {lost[0]}, {lost[1]}\n" in capsys.readouterr().out

    again = tmp_path / "again.pth"
    assert main([str(checkpoint), "--mask", str(kept), "--out", str(again)]) == 0
    states = [read_checkpoint(path).state for path in (out, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(("given", "least"), [("0.02", lambda n: -(-2 * n // 100)), ("3", lambda n: min(3, n))])
def test_min_keep_leaves_something_to_every_layer(scores_file, checkpoint, layout, tmp_path, capsys, given, least):
    out, kept = tmp_path / "p.pth", tmp_path / "m.safetensors"
    options = ["--scores", scores_file, "--ratio", "0.9", "--min-keep", given, "--out", out, "--mask-out", kept]
    assert main([str(a) for a in (checkpoint, *options)]) == 0
    mask = fastalter.Mask.load(kept)
    assert all(mask.kept[entry.name] >= least(entry.size) for entry in layout.entries)
    assert mask.kept_total == round(0.1 * layout.size)
    raised = [entry.name for entry in layout.entries[3:5]]
    assert mask.metadata["raised"] == raised
    record = json.loads((tmp_path / "p.pth.json").read_text())
    assert record["made_by"]["raised"] == raised
    said = capsys.readouterr().out
    assert f"note: 2 of 127 layers were raised to --min-keep; {out}.json names them" in said
    assert "lose every weight" not in said


def test_a_mask_that_is_not_kept_is_said(scores_file, checkpoint, tmp_path, capsys):
    assert main([str(checkpoint), "--scores", str(scores_file), "--out", str(tmp_path / "p.pth")]) == 0
    assert "finetune needs it: give --mask-out" in capsys.readouterr().out
    record = json.loads((tmp_path / "p.pth.json").read_text())
    assert (record["ratio"], record["mask"]) == (0.8, None)
    mask = fastalter.Scores.load(scores_file).mask(0.8)
    assert record["mask_bits_sha256"] == hashlib.sha256(mask.bits.numpy().tobytes()).hexdigest()


def test_scores_for_one_ratio_bring_it_along(scores_file, checkpoint, refused, tmp_path):
    scores = fastalter.Scores.load(scores_file)
    scores.metadata["for_ratio"] = 0.7
    scores.save(scores_file)
    assert "are for 0.7 alone" in refused(checkpoint, "--scores", scores_file, "--ratio", "0.9")
    assert main([str(checkpoint), "--scores", str(scores_file), "--out", str(tmp_path / "p.pth")]) == 0
    assert json.loads((tmp_path / "p.pth.json").read_text())["ratio"] == 0.7


def test_scores_of_channels_take_a_budget_and_a_multiple(tmp_path, capsys, refused):
    from fastalter.score import main as score

    scores, out, kept = tmp_path / "s", tmp_path / "p.pth", tmp_path / "m"
    small = ["--batches", "1", "--batch-size", "1", "--method", "magnitude", "--granularity", "channel"]
    assert score([str(EMBEDDED), *small, "--out", str(scores)]) == 0
    given = ["--ratio", "0.4", "--budget", "flops", "--round-to", "8"]
    assert main([str(EMBEDDED), "--scores", str(scores), *given, "--out", str(out), "--mask-out", str(kept)]) == 0
    mask = fastalter.Mask.load(kept)
    assert torch.equal(mask.bits, fastalter.Scores.load(scores).mask(0.4, budget="flops", round_to=8).bits)
    assert (mask.metadata["budget"], mask.metadata["round_to"]) == ("flops", 8)
    model, weights = load_checkpoint(out).model, mask.weights()
    assert all(not model.get_parameter(name)[~weights[name]].any() for name in weights)
    capsys.readouterr()
    assert f"{scores}: round_to is 7" in refused(EMBEDDED, "--scores", scores, "--round-to", "7")
    assert f"{scores}: budget is 'watts'" in refused(EMBEDDED, "--scores", scores, "--budget", "watts")


def test_the_embedded_checkpoint_from_score_to_pruned(tmp_path, capsys):
    from fastalter.score import main as score

    mask, out = tmp_path / "m", tmp_path / "p.pth"
    assert score([str(EMBEDDED), "--batches", "1", "--batch-size", "1", "--mask", str(mask)]) == 0
    capsys.readouterr()
    assert main([str(EMBEDDED), "--mask", str(mask), "--out", str(out)]) == 0  # synthetic data is its own kind
    said = capsys.readouterr()
    assert "note:" not in said.out + said.err
    kept = fastalter.Mask.load(mask)
    model = load_checkpoint(out).model
    assert all(not model.get_parameter(name)[~kept[name]].any() for name in kept)
    assert load_checkpoint(out).config == load_checkpoint(EMBEDDED).config


# ---- masks that are not this checkpoint's ---------------------------------------------------------------------------


def test_a_mask_of_another_file_wants_force(mask_file, checkpoint, refused, tmp_path, capsys):
    path = mask_file(facts_of(EMBEDDED))
    line = refused(checkpoint, "--mask", path)
    assert f"{path} was made from {EMBEDDED} (sha256 {provenance()['sha256'][:12]}), not from {checkpoint}" in line
    assert "--force" in line
    out = tmp_path / "p.pth"
    assert main([str(checkpoint), "--mask", str(path), "--out", str(out), "--force"]) == 0
    assert "was made from" in capsys.readouterr().out
    (forced,) = json.loads((tmp_path / "p.pth.json").read_text())["forced"]
    assert "not from" in forced
    mask, model = fastalter.Mask.load(path), load_checkpoint(out).model
    assert all(not model.get_parameter(name)[~mask[name]].any() for name in mask)


def test_a_mask_made_on_synthetic_data_wants_force(mask_file, scores_file, checkpoint, refused, tmp_path, capsys):
    path = mask_file(facts_of(checkpoint, synthetic=True))
    line = refused(checkpoint, "--mask", path)
    assert f"scored on synthetic data, which {checkpoint} was not trained for: score it with --data of its own" in line
    assert main([str(checkpoint), "--mask", str(path), "--out", str(tmp_path / "p.pth"), "--force"]) == 0
    assert "warning:" in capsys.readouterr().out
    scores = fastalter.Scores.load(scores_file)
    scores.metadata["synthetic"] = True
    scores.save(scores_file)
    assert "scored on synthetic data" in refused(checkpoint, "--scores", scores_file)


def test_force_does_not_make_another_models_mask_fit(checkpoint, layout, refused, tmp_path):
    path = tmp_path / "m"
    for change, says in (
        (
            lambda rows: [[f"x.{rows[0][0]}", *rows[0][1:]], *rows[1:]],
            "the mask covers this weight and the model has none",
        ),
        (lambda rows: [[rows[0][0], [*rows[0][1], 1], rows[0][2]], *rows[1:]], "its shape is"),
    ):
        other = Layout.from_json(change(layout.to_json()))
        select(torch.rand(other.size), other, 1000, ratio=0.9, metadata=facts_of(checkpoint)).save(path)
        line = refused(checkpoint, "--mask", path, "--force")
        assert says in line
        assert str(path) in line
        assert other.entries[0].name in line


def test_a_mask_that_does_not_say_where_it_is_from_is_used_with_a_note(mask_file, checkpoint, tmp_path, capsys):
    path = mask_file({"method": "altermoma"})
    assert main([str(checkpoint), "--mask", str(path), "--out", str(tmp_path / "p.pth")]) == 0
    said = capsys.readouterr().out
    assert f"note: {path} does not say its model, data, synthetic, seed\n" in said
    assert f"note: {path} does not say which checkpoint it was made from: only names and shapes are checked\n" in said
    assert "not recorded, altermoma on not recorded" in said


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], r"give either --mask, or --scores"),
        (["--mask", "m", "--scores", "s"], r"give either --mask, or --scores"),
        (["--mask", "m", "--ratio", "0.5"], r"--ratio goes with --scores"),
        (["--mask", "m", "--min-keep", "0.5"], r"--min-keep goes with --scores"),
        (["--mask", "m", "--budget", "flops"], r"--budget goes with --scores"),
        (["--mask", "m", "--round-to", "8"], r"--round-to goes with --scores"),
        (["--mask", "m", "--mask-out", "n"], r"--mask-out goes with --scores"),
        (["--scores", "s", "--ratio", "1"], r"--ratio 1 is outside \[0, 1\): give"),
        (["--scores", "s", "--ratio", "nan"], r"--ratio nan is outside"),
        (["--scores", "s", "--min-keep", "some"], r"--min-keep some: give a share of each layer"),
        (["--scores", "s", "--min-keep", "1.5"], r"min_keep is 1.5; give each layer's least share"),
        (["--scores", "s", "--min-keep", "0"], r"min_keep is 0; give"),
        (["--scores", "s", "--min-keep", "nan"], r"min_keep is nan; give"),
        (["--mask", "/no/such/mask"], r"/no/such/mask: no such file; give the mask file"),
        (["--scores", "/no/such/scores"], r"/no/such/scores: no such file; give the scores file"),
        (["--mask", "m", "--out", "/no/such/place/p.pth"], r"no folder /no/such/place; make it"),
        (["--mask", "m", "--colour", "red"], r"--colour"),
    ],
)
def test_wrong_options(refused, checkpoint, options, says):
    assert re.search(says, refused(checkpoint, *options))


def test_without_a_place_to_write_it_says_so(checkpoint, capsys):
    assert main([str(checkpoint), "--mask", "m"]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_floor_that_the_ratio_does_not_leave(scores_file, checkpoint, refused):
    line = refused(checkpoint, "--scores", scores_file, "--ratio", "0.95", "--min-keep", "0.1")
    assert "min_keep=0.1: the 127 layers need" in line
    assert "prune at most a ratio of 0.89" in line


def test_files_of_the_wrong_kind(mask_file, scores_file, checkpoint, refused, tmp_path):
    mask = mask_file(facts_of(checkpoint))
    assert "expected fastalter mask, found scores" in refused(checkpoint, "--mask", scores_file)
    assert "expected fastalter scores, found mask" in refused(checkpoint, "--scores", mask)
    assert "not a readable safetensors file" in refused(checkpoint, "--mask", checkpoint)
    mask.write_bytes(mask.read_bytes()[:5000])
    assert str(mask) in refused(checkpoint, "--mask", mask)
    assert str(tmp_path / "no.pth") in refused(tmp_path / "no.pth", "--scores", scores_file)


def test_no_output_may_be_an_input(mask_file, scores_file, checkpoint, refused, tmp_path):
    mask = mask_file(facts_of(checkpoint))
    before = {path: digest(path) for path in (mask, scores_file, checkpoint)}
    assert "is also the checkpoint" in refused(checkpoint, "--mask", mask, "--out", checkpoint)
    assert "is also --mask" in refused(checkpoint, "--mask", mask, "--out", mask)
    both = ("--scores", scores_file, "--mask-out", scores_file)
    assert "is also --scores" in refused(checkpoint, *both)
    place = tmp_path / "x.pth"
    record = ("--scores", scores_file, "--mask-out", tmp_path / "x.pth.json", "--out", place)
    assert "is also the record beside --out:" in refused(checkpoint, *record)
    assert {path: digest(path) for path in before} == before


def test_a_failed_write_leaves_nothing(mask_file, checkpoint, refused, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = mask_file(facts_of(checkpoint))
    monkeypatch.setattr("fastalter.pruning.json.dumps", fail)  # the record, written last
    assert "No space left on device" in refused(checkpoint, "--mask", path)
