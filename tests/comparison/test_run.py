"""A cell from theta_init to its numbers, and the compare verb, on a dataset of two scenes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint
from fastalter.compare import main
from fastalter.comparison import DENSE, Cell, Judge, Method, Regime, Study, Work, run_cell, run_dropped
from fastalter.criteria import CRITERIA, for_one_ratio
from fastalter.data import load
from fastalter.data.loading import training_batches
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.data.synthetic import SyntheticSettings
from fastalter.data.synthetic.dataset import write_dataset
from fastalter.data.synthetic.tables import TRAIN, VAL, VERSION
from fastalter.errors import DataError
from fastalter.evaluation import evaluate_model
from fastalter.training import TrainOptions


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "data"
    write_dataset(folder, SyntheticSettings(scenes=2, val_scenes=1, samples=2, seed=5), workers=1)
    return folder


@pytest.fixture(scope="module")
def common(root):
    config = load_checkpoint(EMBEDDED).config
    spec = f"nuscenes:{root}:{VERSION}:{TRAIN}"
    return Study(
        scored=lambda seed, regime: load(spec, config=config, batches=2, batch_size=1, seed=seed),
        trained=lambda seed, regime: training_batches(spec, config=config, batch_size=2, seed=seed),
        judge=Judge(NuScenesFrames(root, VERSION, VAL, keep_unseen=True), 2, ("camera",)),
        data="two scenes",
        settle=1,
    )


def regime(**changes):
    options = TrainOptions(steps=2, lr=1e-3, warmup=0.0, checkpoint_every=1)
    return Regime(
        **{
            "name": "trained",
            "start": lambda seed: load_checkpoint(EMBEDDED).model,
            "origin": {"fusion": "embedded"},
            "options": options,
            "batch_size": 2,
            **changes,
        }
    )


def test_a_judge_may_keep_its_frames_in_memory(common):
    model = load_checkpoint(EMBEDDED).model
    keeping = Judge(common.judge.frames, 2, cache_bytes=1 << 30)
    assert keeping.batches(model)[0] is keeping.batches(model)[0]
    assert common.judge.batches(model)[0] is not common.judge.batches(model)[0]
    tokens = [token for batch in keeping.batches(model) for token in batch.tokens]
    assert tokens == [sample.token for sample in common.judge.frames]
    numbers = [
        evaluate_model(model, judge.frames, batches=judge.batches(model)).mean_label_aps
        for judge in (keeping, keeping, common.judge)
    ]
    assert numbers[0] == numbers[1] == numbers[2]


def test_a_cell_runs_and_is_the_same_again(common, tmp_path):
    cell = Cell(regime(), Method("snip", "snip"), 0.9, 0)
    first = run_cell(cell, common, Work(tmp_path / "one"))
    assert set(first["before"]) == {"mean_ap", "nd_score", "tp_errors", "mean_label_aps"}
    assert set(first["dropped"]) == {"camera"}
    assert first["seconds"].keys() == {"score", "settle", "evaluate", "train"}
    assert first["kept"] == pytest.approx(kept_of(cell, common), abs=1e-5)
    again = run_cell(cell, common, Work(tmp_path / "two"))
    assert without_seconds(again) == without_seconds(first)


@pytest.mark.parametrize("method", [Method("snip", "snip"), DENSE])
def test_sensors_are_dropped_afterwards_as_with_the_cell(common, tmp_path, method):
    cell, work = Cell(regime(), method, 0.9 if method.criterion else 0.0, 0), Work(tmp_path)
    with pytest.raises(DataError, match="no training of this cell"):
        run_dropped(cell, common, work)
    together = run_cell(cell, common, work)["dropped"]
    assert set(together) == {"camera"}
    assert json.dumps(run_dropped(cell, common, work)) == json.dumps(together)


@pytest.mark.parametrize("method", [Method("magnitude", "magnitude"), Method("modalfisher", "modalfisher")])
def test_where_channels_go_a_smaller_network_is_trained(common, tmp_path, method):
    cell = Cell(regime(budget="flops"), method, 0.3, 0)
    result = run_cell(cell, common, Work(tmp_path))
    assert 0.3 <= result["reached"]["flops"] < 0.35
    assert all(0 < share <= 1 for share in result["kept"].values())
    assert set(result["before"]) == set(result["after"])
    trained = torch.load(tmp_path / "cells" / cell.name / "training" / "last.pt", weights_only=True)["model"]
    dense = load_checkpoint(EMBEDDED).model
    left = sum(trained[name].numel() for name, _ in dense.named_parameters())
    whole = sum(parameter.numel() for parameter in dense.parameters())
    assert result["reached"]["parameters"] == pytest.approx(1 - left / whole, abs=0.02)
    assert json.dumps(run_dropped(cell, common, Work(tmp_path))) == json.dumps(result["dropped"])


def kept_of(cell, common):
    import fastalter

    scores = fastalter.score_model(
        cell.regime.start(0), common.scored(0, cell.regime), method="snip", ratio=0.9, progress=False
    )
    mask = scores.mask(0.9)
    sizes = {branch: scores.branch(branch).numel() for branch in mask.layout.branches}
    return {branch: kept / sizes[branch] for branch, kept in mask.kept_by_branch().items()}


def without_seconds(result):
    return json.dumps({name: value for name, value in result.items() if name != "seconds"})


def test_scores_are_made_once_for_all_ratios(common, tmp_path):
    calls = []

    def counted(problem, **settings):
        calls.append(problem.options.ratio)
        return CRITERIA["magnitude"](problem, **settings)

    cell = Cell(regime(), Method("counted", counted), 0.9, 0)
    run_cell(cell, common, Work(tmp_path))
    run_cell(replace(cell, ratio=0.5), common, Work(tmp_path))
    assert len(calls) == 1
    per_ratio = Method("per ratio", for_one_ratio(counted))
    run_cell(replace(cell, method=per_ratio), common, Work(tmp_path))
    run_cell(replace(cell, method=per_ratio, ratio=0.5), common, Work(tmp_path))
    assert calls[1:] == [0.9, 0.5]


def test_the_dense_cell_prunes_nothing_and_a_fresh_one_is_not_judged_before(common, tmp_path):
    seen = []

    def start(seed):
        seen.append(load_checkpoint(EMBEDDED).model)
        return seen[-1]

    result = run_cell(Cell(regime(start=start, before=False), DENSE, 0.0, 0), common, Work(tmp_path))
    assert result["before"] is None
    assert result["kept"] is None
    assert not any(bool((p == 0).all()) for n, p in seen[0].named_parameters() if n.endswith("conv.weight"))


def test_a_cell_that_was_stopped_goes_on_to_the_same_numbers(common, tmp_path, monkeypatch):
    cell = Cell(regime(), Method("magnitude", "magnitude"), 0.9, 0)
    whole = run_cell(cell, common, Work(tmp_path / "whole"))
    step = torch.optim.AdamW.step
    taken = []

    def stop(self, *args, **kwargs):
        taken.append(1)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, common, Work(tmp_path / "stopped"))
    monkeypatch.undo()
    assert without_seconds(run_cell(cell, common, Work(tmp_path / "stopped"))) == without_seconds(whole)


def test_the_verb_compares_and_does_nothing_twice(root, tmp_path, capsys):
    arguments = [str(EMBEDDED), "--train", f"nuscenes:{root}:{VERSION}:{TRAIN}"]
    arguments += ["--test", f"nuscenes:{root}:{VERSION}:{VAL}", "--out", str(tmp_path / "out")]
    arguments += [
        "--methods",
        "snip,magnitude",
        "--ratios",
        "0.9",
        "--batches",
        "1",
        "--batch-size",
        "1",
        "--steps",
        "1",
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "mAP after fine-tuning" in shown
    assert "3 cells, 3 of them run now" in shown
    assert main(arguments) == 0
    assert "3 cells, 0 of them run now" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [cell["method"] for cell in document["cells"]] == ["snip", "magnitude"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--methods", "snap"], "'snap' is not known; there are altermoma"),
        (["--methods", ""], "--methods: nothing to compare"),
        (["--ratios", "1.5"], "1.5 is outside (0, 1)"),
        (["--ratios", "much"], "'much' is no number"),
        (["--steps", "0"], "--steps 0: give 1 or more"),
        (["--test", "synthetic"], "synthetic"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(root, tmp_path, capsys, changed, message):
    arguments = [str(EMBEDDED), "--train", "synthetic", "--test", f"nuscenes:{root}:{VERSION}:{VAL}"]
    assert main([*arguments, "--out", str(tmp_path / "out"), *changed]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
