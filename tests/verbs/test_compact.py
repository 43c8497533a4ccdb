"""The compact verb: a smaller file that every verb takes, its plan and record, and masks that it must not use."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from fastalter import CompactionPlan, prune_model
from fastalter.assets import EMBEDDED, provenance
from fastalter.checkpoint import load_checkpoint
from fastalter.compact import main
from fastalter.data.example import example_batch
from fastalter.finetuning.job import FinetuneOptions, finetune_checkpoint
from fastalter.fusion import adapt
from fastalter.masks import masked
from fastalter.models import build
from fastalter.profiling.job import ProfileOptions, profile_checkpoint
from fastalter.structure.grouping.find import find_groups
from fastalter.structure.mask import ChannelMask
from tests.masks.nets import net_and_mask

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def batch():
    return example_batch(build("bevfusion-tiny").config, 1)


@pytest.fixture(scope="module")
def groups(batch):
    return find_groups(adapt(build("bevfusion-tiny", seed=1)), batch)


@pytest.fixture
def mask_file(groups, tmp_path):
    """Writes a random mask of the tiny model's channels with this origin and other facts."""

    def write(origin: Path | None, ratio: float = 0.4, **facts: object) -> Path:
        kept = torch.rand(groups.size, generator=torch.Generator().manual_seed(2)) >= ratio
        made = {"method": "altermoma", "synthetic": False, "data": "nuscenes v1.0-mini", "seed": 4, **facts}
        if origin is not None:
            made["checkpoint"] = {"path": str(origin), "sha256": digest(origin)}
        ChannelMask(kept, groups, ratio=ratio, metadata=made).save(tmp_path / "mask.safetensors")
        return tmp_path / "mask.safetensors"

    return write


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def maps(model, batch):
    with torch.no_grad():
        return model.eval()(batch)["dense_heatmap"]


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [False, True])
def test_the_file_is_the_masked_network_made_smaller(checkpoint, mask_file, batch, tmp_path, capsys, fold):
    path, out = mask_file(checkpoint), tmp_path / "small.safetensors"
    assert run(checkpoint, "--mask", path, "--out", out, *(["--fold-bn"] if fold else [])) == 0
    shown = capsys.readouterr().out
    assert [Path(line.removeprefix("wrote: ")).name for line in shown.splitlines() if line.startswith("wrote")] == [
        "small.safetensors",
        "small.plan.json",
        "small.safetensors.json",
    ]
    small, dense, mask = load_checkpoint(out), load_checkpoint(checkpoint), ChannelMask.load(path)
    with masked(dense.model, mask.weights()):
        expected = maps(dense.model, batch)
    torch.testing.assert_close(maps(small.model, batch), expected, **({"rtol": 1e-4, "atol": 1e-4} if fold else CLOSE))
    kinds = {type(module).__name__ for module in small.model.modules()}
    assert ({"BatchNorm2d", "SiteBatchNorm", "BatchNorm1d"} & kinds == set()) == fold
    own = CompactionPlan.load(tmp_path / "small.plan.json").apply(build("bevfusion-tiny", seed=7))
    own.load_state_dict(small.model.state_dict(), strict=True)

    record = json.loads((tmp_path / "small.safetensors.json").read_text())
    assert record["file"] == {"path": str(out), "sha256": digest(out)}
    assert record["plan"]["sha256"] == digest(tmp_path / "small.plan.json")
    assert record["checkpoint"]["sha256"] == digest(checkpoint)
    assert record["mask"]["sha256"] == digest(path)
    assert record["made_by"]["seed"] == 4
    assert record["forced"] == []
    assert record["not_folded"] == {}
    learned = {k: v for k, v in small.model.named_parameters() if v.requires_grad}
    assert sum(size["parameters"][1] for size in record["branches"].values()) == sum(
        v.numel() for v in learned.values()
    )
    assert sum(size["channels"][0] for size in record["branches"].values()) == mask.groups.size
    assert record["branches"]["lidar"]["channels"][1] == mask.kept_by_branch()["lidar"]


def test_json_is_one_object_with_the_sizes(checkpoint, mask_file, tmp_path, capsys):
    assert run(checkpoint, "--mask", mask_file(checkpoint), "--out", tmp_path / "s.safetensors", "--json") == 0
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert list(document["branches"]) == ["camera", "lidar", "fusion"]
    assert set(document["seconds"]) == {"read mask", "load checkpoint", "compact", "write"}
    assert len(document["written"]) == 3


def test_the_table_adds_up(checkpoint, mask_file, tmp_path, capsys):
    assert run(checkpoint, "--mask", mask_file(checkpoint), "--out", tmp_path / "s.safetensors") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    numbers = {
        row[0]: [float(cell.replace(",", "")) for cell in row[1:]]
        for row in rows
        if len(row) == 7 and row[1] != "parameters"
    }
    assert list(numbers) == ["camera", "lidar", "fusion", "total"]
    for column in (0, 1, 3, 4):
        assert sum(numbers[name][column] for name in ("camera", "lidar", "fusion")) == numbers["total"][column]
    had, has, percent = numbers["total"][:3]
    assert percent == pytest.approx(100 * has / had, abs=0.05)


def test_layers_that_lose_everything_are_told(checkpoint, mask_file, tmp_path, capsys):
    path = mask_file(checkpoint, ratio=0.97)
    assert run(checkpoint, "--mask", path, "--out", tmp_path / "s.safetensors") == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    count = len(json.loads((tmp_path / "s.safetensors.json").read_text())["emptied"])
    assert warning.startswith(f"warning: {count} sets of channels lose every one: encoders.")


@pytest.fixture(scope="module")
def compacted(checkpoint, groups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compacted")
    kept = torch.rand(groups.size, generator=torch.Generator().manual_seed(2)) >= 0.5
    ChannelMask(kept, groups, ratio=0.5, metadata={"synthetic": False}).save(folder / "mask.safetensors")
    assert run(checkpoint, "--mask", folder / "mask.safetensors", "--out", folder / "small.safetensors") == 0
    return folder / "small.safetensors"


def test_finetune_takes_it_and_keeps_it_compacted(compacted, tmp_path):
    out = tmp_path / "tuned.safetensors"
    options = FinetuneOptions(
        checkpoint=compacted, out=out, work=tmp_path, steps=1, data="synthetic", dense=True, batch_size=1
    )
    result = finetune_checkpoint(options)
    assert result.facts["made_by"]["kind"] == "fastalter compacted"
    before, after = load_checkpoint(compacted), load_checkpoint(out)
    assert after.plan.to_json() == before.plan.to_json()
    assert not torch.equal(after.model.fuser[0].weight, before.model.fuser[0].weight)


def test_profile_takes_it_beside_the_dense_one(checkpoint, compacted):
    options = ProfileOptions(checkpoints=(checkpoint, compacted), rounds=1, warmup=0)
    dense, small = profile_checkpoint(options).networks
    assert small.whole.parameters < dense.whole.parameters
    assert small.whole.flops < dense.whole.flops / 2


def test_it_can_be_compacted_again(compacted, batch, tmp_path):
    loaded = load_checkpoint(compacted)
    groups = find_groups(adapt(loaded.model), batch)
    kept = torch.rand(groups.size, generator=torch.Generator().manual_seed(3)) >= 0.3
    mask = ChannelMask(kept, groups, ratio=0.3, metadata={"synthetic": False})
    mask.save(tmp_path / "again.safetensors")
    out = tmp_path / "smaller.safetensors"
    assert run(compacted, "--mask", tmp_path / "again.safetensors", "--out", out, "--fold-bn") == 0
    with masked(loaded.model, mask.weights()):
        expected = maps(loaded.model, batch)
    torch.testing.assert_close(maps(load_checkpoint(out).model, batch), expected, rtol=1e-4, atol=1e-4)


def test_evaluate_and_report_read_it_as_any_checkpoint(compacted):
    """Both go through load_checkpoint; its model answers what they ask of one."""
    loaded = load_checkpoint(compacted)
    batch = example_batch(loaded.config, 1)
    boxes = loaded.model.head.decode(loaded.model.eval()(batch))
    assert set(boxes[0]) >= {"boxes", "scores", "labels"}


# ---- masks that are not this checkpoint's ----------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the verb, wants it to refuse and to write nothing, returns the line it printed."""

    def check(*arguments: object) -> str:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        status = run(*arguments, *([] if "--out" in arguments else ["--out", out / "small.safetensors"]))
        streams = capsys.readouterr()
        assert status == 2
        assert streams.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", streams.err), streams.err
        assert list(out.iterdir()) == []
        return streams.err

    return check


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(build("bevfusion-tiny", seed=5).state_dict(), path)
    return path


def test_a_mask_of_another_checkpoint_wants_force(checkpoint, other, mask_file, refused, tmp_path, capsys):
    path = mask_file(other)
    assert "was made from" in refused(checkpoint, "--mask", path)
    assert run(checkpoint, "--mask", path, "--out", tmp_path / "s.safetensors", "--force") == 0
    assert "warning: " in (shown := capsys.readouterr().out)
    assert "(--force)" in shown
    assert len(json.loads((tmp_path / "s.safetensors.json").read_text())["forced"]) == 1


def test_a_mask_of_synthetic_data_wants_force_except_for_the_embedded_checkpoint(
    checkpoint, mask_file, refused, tmp_path
):
    assert "scored on synthetic data" in refused(checkpoint, "--mask", mask_file(checkpoint, synthetic=True))
    assert digest(EMBEDDED) == provenance()["sha256"]
    assert run(EMBEDDED, "--mask", mask_file(EMBEDDED, synthetic=True), "--out", tmp_path / "s.safetensors") == 0


def test_a_checkpoint_pruned_by_the_mask_and_trained_on_needs_no_force(checkpoint, mask_file, tmp_path, capsys):
    path, loaded = mask_file(checkpoint), load_checkpoint(checkpoint)
    prune_model(loaded.model, ChannelMask.load(path).weights()).remove()
    loaded.save(tmp_path / "pruned.pth")
    assert run(tmp_path / "pruned.pth", "--mask", path, "--out", tmp_path / "s.safetensors") == 0
    assert "is zero in" in capsys.readouterr().out


def test_masks_of_single_weights_and_of_other_models_are_refused(checkpoint, mask_file, refused, tmp_path):
    _, mask, _ = net_and_mask()
    mask.save(tmp_path / "weights.safetensors")
    assert "is a mask of single weights" in refused(checkpoint, "--mask", tmp_path / "weights.safetensors")
    torch.save(build("bevfusion-tiny-resnet").state_dict(), tmp_path / "resnet.pth")
    line = refused(tmp_path / "resnet.pth", "--mask", mask_file(None))
    assert re.search(
        r"mask\.safetensors: encoders\.camera\.\S+: the groups reach this tensor and the model has none", line
    )


def test_places_and_files_that_cannot_be_are_refused(checkpoint, mask_file, refused, tmp_path):
    path = mask_file(checkpoint)
    assert "is also" in refused(checkpoint, "--mask", path, "--out", path)
    assert "no folder" in refused(checkpoint, "--mask", path, "--out", tmp_path / "none" / "s.safetensors")
    assert "no such file" in refused(checkpoint, "--mask", tmp_path / "none.safetensors")


def test_a_folded_file_is_not_compacted_again(checkpoint, mask_file, refused, tmp_path, capsys):
    out = tmp_path / "folded.safetensors"
    assert run(checkpoint, "--mask", mask_file(checkpoint, ratio=0.0), "--out", out, "--fold-bn") == 0
    capsys.readouterr()
    assert "compact before folding" in refused(out, "--mask", mask_file(out))
