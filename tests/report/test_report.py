from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.image
import pytest

from fastalter.report.plot import save_plot
from fastalter.report.progress import progress_bars
from fastalter.report.summary import BranchCount, LayerCount, branch_counts, layer_counts, summary, total_count
from fastalter.report.terminal import lost_layers, print_summary, show_run

from .made import METADATA, make_mask


def test_counts_by_branch_and_layer():
    counts = branch_counts(make_mask(), METADATA["branches"])
    assert counts == [
        BranchCount("camera", 60, 48, 32),
        BranchCount("lidar", 5, 0, 0),
        BranchCount("fusion", 17, 16, 4),
    ]
    assert total_count(counts) == BranchCount("total", 82, 64, 36)
    assert [c.fraction for c in counts] == [32 / 48, 1.0, 0.25]
    assert layer_counts(make_mask())[1] == LayerCount("cam.out", "camera", (4, 4), 16, 0)


def test_the_json_object_has_the_promised_keys():
    found = summary(METADATA, make_mask(), {"load": 1.23456})
    assert list(found) == ["method", "model", "data", "synthetic", "seed", "branches", "total", "threshold", "seconds"]
    assert found["branches"]["camera"] == {"parameters": 60, "prunable": 48, "kept": 32}
    assert found["total"] == {"parameters": 82, "prunable": 64, "kept": 36}
    assert found["threshold"] == 0.25
    assert found["seconds"] == {"load": 1.2346}
    assert summary(METADATA, make_mask(math.inf), {})["threshold"] is None


def test_the_tables_show_counts_worst_layers_and_seconds(capsys):
    print_summary(METADATA, make_mask(), {"load": 3.0, "score": 1.0})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "toy [bold], altermoma on example, seed 3" in lines
    assert "ratio 0.4375: the 36 highest scores stay, down to 0.25" in lines
    assert "camera 60 48 32 66.7" in lines
    assert "total 82 64 36 56.2" in lines
    worst = lines.index("Layers that lose most (3 of 3)")
    assert lines[worst + 2 : worst + 4] == ["cam.out camera 4x4 16 0.0", "fuse fusion 2x8 16 25.0"]
    assert "load 3.00 75" in lines


def test_layers_that_lose_everything_are_named():
    assert lost_layers(layer_counts(make_mask())) == ["1 of 3 layers lose every weight: cam.out"]
    assert lost_layers([LayerCount("a", "camera", (1,), 1, 1)]) == []
    (line,) = lost_layers([LayerCount(f"l{i}", "camera", (1,), 1, 0) for i in range(25)])
    assert line.startswith("25 of 25 layers lose every weight: l0, l1,")
    assert line.endswith(", l19 and 5 more")


def test_notes_go_to_stderr_beside_json(capsys):
    run = SimpleNamespace(
        scores=SimpleNamespace(metadata=METADATA),
        mask=make_mask(),
        seconds={},
        notes=["n"],
        warnings=["w"],
        written=["a.png"],
    )
    show_run(run, as_json=True)
    streams = capsys.readouterr()
    assert json.loads(streams.out)["seed"] == 3
    assert streams.err.splitlines() == ["note: n", "warning: w", "warning: 1 of 3 layers lose every weight: cam.out"]
    show_run(run, as_json=False)
    streams = capsys.readouterr()
    assert streams.err == ""
    assert streams.out.startswith("note: n\n")
    assert streams.out.endswith("wrote: a.png\nwarning: w\nwarning: 1 of 3 layers lose every weight: cam.out\n")


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_plot_is_a_picture_of_its_kind(tmp_path, kind):
    path = tmp_path / "kept.part"
    counts = branch_counts(make_mask(), METADATA["branches"])
    save_plot(path, layers=layer_counts(make_mask()), branches=counts, title="toy", kind=kind)
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert path.read_bytes().startswith(start)


def test_the_plot_grows_with_the_layers_and_draws_every_branch(tmp_path):
    def size(count: int) -> tuple[int, ...]:
        layers = [LayerCount(f"net.{b}.{i}", b, (8,), 8, i % 9) for b in ("camera", "lidar") for i in range(count)]
        branches = [BranchCount(b, 8 * count, 8 * count, 4 * count) for b in ("camera", "lidar")]
        save_plot(tmp_path / "p", layers=layers, branches=branches, title="t", kind="png")
        return matplotlib.image.imread(tmp_path / "p").shape

    few, many = size(4), size(40)
    assert 300 < few[0] < 1000
    assert many[0] > few[0]
    assert many[1] == 2 * few[1]  # two columns
    pixels = (matplotlib.image.imread(tmp_path / "p")[:, :, :3] * 255).round().astype(int).reshape(-1, 3)
    colours = {tuple(pixel) for pixel in pixels[::7].tolist()}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= colours


def test_progress_is_silent_where_stderr_is_no_terminal(capsys):
    with progress_bars() as progress:
        progress("start", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_draws_a_bar_per_stage_on_a_terminal():
    code = (
        "from fastalter.report.progress import progress_bars\n"
        "with progress_bars() as p: p('start', 1, 2); p('start', 2, 2); p('end', 1, 7)"
    )
    main, terminal = pty.openpty()
    try:
        done = subprocess.run([sys.executable, "-c", code], stderr=terminal, stdout=subprocess.PIPE, check=True)
        shown = os.read(main, 65536).decode()
    finally:
        os.close(main)
        os.close(terminal)
    assert done.stdout == b""
    assert "start" in shown
    assert "2/2" in shown
    assert "1/7" in shown
