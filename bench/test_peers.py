"""The peers' benchmark on small networks: the same mask by every contender, honest meters, failures as rows."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from bench.peers import compare, contenders, worker
from bench.peers.contenders import CONTENDERS, NOT_COMPARED, OURS, PEERS, WHAT, Contender, Task
from bench.peers.jobs import JOBS, distinct
from fastalter.profiling.measure import resident_growth

MEGABYTE = 1 << 20


def row(name: str, job: str = "small", rounds: int = 2) -> dict[str, Any]:
    return worker.row_of(job, name, JOBS[job].scores(), rounds)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_keeps_the_top_k_of_distinct_scores(name):
    found = row(name)
    assert "error" not in found, found["error"]
    assert found["kept"] == found["k"] == round(0.2 * JOBS["small"].scores().layout.size)
    assert found["same_as_ours"]
    assert len(found["seconds"]) == 2
    if found["ranks_the_given_scores"]:
        flat = JOBS["small"].scores().flat
        top = torch.zeros(flat.numel(), dtype=torch.bool)
        top[sorted(range(flat.numel()), key=lambda i: -float(flat[i]))[: found["k"]]] = True
        assert found["sha256"] == worker.digest(top)


def test_only_nncf_ranks_scores_of_its_own():
    assert [name for name in CONTENDERS if not row(name, rounds=1)["ranks_the_given_scores"]] == ["nncf"]


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_round_makes_the_mask_anew(name):
    """What a contender leaves in a network must not spare the next round its work, or pile up."""
    job = JOBS["small"]
    contender = CONTENDERS[name](Task.of(job, job.scores()))
    first = contender.flags(contender.make()).clone()
    for _ in range(2):
        contender.reset()
        assert torch.equal(contender.flags(contender.make()), first)
        assert int(first.sum()) < first.numel()


def test_where_scores_tie_only_those_who_break_ties_keep_k():
    surplus = {name: (r := row(name, "small ties", 1))["kept"] - r["k"] for name in CONTENDERS if name != "nncf"}
    assert {name: surplus[name] for name in OURS} == dict.fromkeys(OURS, 0)
    assert surplus["torch-prune"] == 0
    assert surplus["kthvalue"] == surplus["flat-kthvalue"] < 0
    assert surplus["topk"] == surplus["sort"] == surplus["numpy"] > 0


def test_scores_are_distinct_and_keep_their_order():
    values = torch.tensor([0.5, 0.0, 0.5, 2.0, 0.5, 0.0, 2.0])
    moved = distinct(values)
    assert moved.unique().numel() == values.numel()
    assert moved.argsort().tolist() == values.argsort(stable=True).tolist()
    assert torch.allclose(moved, values, rtol=1e-6, atol=1e-40)
    for name in ("small", "small ties"):
        flat = JOBS[name].scores().flat
        assert (flat.unique().numel() == flat.numel()) != JOBS[name].ties
        assert torch.equal(flat, JOBS[name].scores().flat)


@pytest.mark.parametrize("freed", [True, False])
def test_the_memory_meter_sees_what_was_allocated_even_if_it_was_freed(freed):
    held = []

    def allocate() -> None:
        block = torch.ones(64 * MEGABYTE, dtype=torch.uint8)
        if not freed:
            held.append(block)

    allocate()  # an earlier, larger peak must not count
    assert 64 * MEGABYTE <= resident_growth(allocate) + MEGABYTE <= 68 * MEGABYTE
    assert resident_growth(lambda: None) < 2 * MEGABYTE


def test_the_mask_and_the_copies_count_as_extra_memory():
    """One float32 copy of the scores at the least, on a job large enough to see it."""

    def make(task: Task) -> Contender:
        return Contender(lambda: torch.ones(4 * MEGABYTE) > 0, lambda flags: flags[: task.scores.layout.size])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONTENDERS, "select", make)
        extra = row("select", rounds=1)["extra_bytes"]
    assert 19 * MEGABYTE < extra < 24 * MEGABYTE  # 16 of floats and 4 of flags


def broken(task: Task) -> Contender:
    def make() -> None:
        raise ZeroDivisionError("no rule\nmore")

    return Contender(make, lambda _: torch.zeros(0))


def test_a_broken_contender_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setitem(CONTENDERS, "topk", broken)
    assert row("topk") == {"error": "ZeroDivisionError: no rule"}


def test_a_contender_with_another_mask_is_told_apart(monkeypatch):
    def one_less(task: Task) -> Contender:
        return contenders.by_topk(Task(task.job, task.scores, task.keep - 1))

    def turned(task: Task) -> Contender:
        contender = contenders.by_topk(task)
        return Contender(contender.make, lambda made: contender.flags(made).flip(0))

    for wrong, surplus in ((one_less, -1), (turned, 0)):
        monkeypatch.setitem(CONTENDERS, "topk", wrong)
        found = row("topk", rounds=1)
        assert found["kept"] - found["k"] == surplus
        assert not found["same_as_ours"]


def test_without_nncf_its_row_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "nncf"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert ".[peers]" in row("nncf")["error"]


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import sys; sys.exit('out of luck')", "status 1: out of luck"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "status -9"),
        ("import sys; open(sys.argv[1], 'w').write('{}'); sys.exit('too late')", "status 1: too late"),
        ("pass", "status 0"),
        ("import time; time.sleep(60)", "took more than 1 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_row_that_says_so(program, says, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "PATIENCE", 1 if "sleep" in program else 60)
    out = tmp_path / "row.json"
    assert says in compare.fresh([sys.executable, "-c", program, str(out)], out)["error"]


def measured(seconds: float, extra: int = 400, same: bool = True, ranks: bool = True) -> dict[str, Any]:
    return {
        "seconds": [seconds],
        "extra_bytes": extra,
        "same_as_ours": same,
        "ranks_the_given_scores": ranks,
        "kept": 5,
        "k": 5,
    }


def test_the_targets_count_the_fastest_peer_with_the_same_mask_and_the_slower_of_ours():
    rows = {
        "select": measured(1.0, 50),
        "scores.mask": measured(2.0, 100),
        "cat+select": measured(0.1),
        "kthvalue": measured(20.0),
        "numpy": measured(9.0),
        "sort": measured(0.5, same=False),
        "nncf": measured(0.5, ranks=False),
        "topk": {"error": "none"},
    }
    assert compare.targets(rows) == {
        "fastest_peer": "numpy",
        "faster": 4.5,
        "memory_of_kthvalue": 0.25,
        "met": {"faster": False, "memory": True},
    }
    assert compare.targets({"select": measured(1.0), "kthvalue": {"error": "none"}}) == {}
    assert compare.targets({"kthvalue": measured(1.0)}) == {}


def text_of(result: dict[str, Any]) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    compare.show(result, console)
    return console.export_text()


def test_the_table_shows_errors_other_masks_and_what_is_not_compared():
    rows = {"select": measured(0.25), "sort": measured(1.0, same=False), "nncf": {"error": "RuntimeError: gone"}}
    job = {"title": "a network", "weights": 5_000_000, "ties": False, "rows": rows}
    text = text_of({"ratio": 0.8, "jobs": {"x": job}, "not_compared": NOT_COMPARED})
    line = {name: next(line for line in text.splitlines() if WHAT[name] in line) for name in rows}
    assert "250.0" in line["select"]
    assert "the same" in line["select"]
    assert "another" in line["sort"]
    assert "RuntimeError: gone" in line["nncf"]
    assert "torch-pruning" in text


def test_every_contender_has_a_name_for_people():
    assert list(WHAT) == list(CONTENDERS) == [*OURS, *PEERS]


def test_the_command_runs_fresh_processes_and_writes_rows_with_their_provenance(tmp_path: Path):
    run: Callable[..., Any] = CliRunner().invoke
    out = tmp_path / "peers.json"
    app = typer.Typer()
    app.command()(compare.main)
    options = ["--job", "small", "--rounds", "2", "--only", "select", "--only", "scores.mask", "--only", "kthvalue"]
    done = run(app, [*options, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert {"commit", "device", "threads", "versions"} <= set(result["provenance"])
    job = result["jobs"]["small"]
    assert list(job["rows"]) == ["select", "scores.mask", "kthvalue"]
    assert job["fastest_peer"] == "kthvalue"
    assert len({found["sha256"] for found in job["rows"].values()}) == 1
    assert job["rows"]["select"]["sha256"] == row("select", rounds=1)["sha256"]

    wrong = run(app, ["--only", "nni"])
    assert wrong.exit_code == 2
    assert "nni" in wrong.output
