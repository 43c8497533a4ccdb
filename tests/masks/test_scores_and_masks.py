"""Scores and masks: exactly k kept, ties by index, files that come back equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastalter import FastalterError, Mask, Scores
from fastalter.altermoma import Entry, Layout
from fastalter.errors import MaskError

SHAPES = {"a.weight": ("camera", (3, 5)), "b.weight": ("lidar", (7,)), "c.weight": ("fusion", (2, 1, 11))}


def layout_of(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> Layout:
    entries, offset = [], 0
    for name, (branch, shape) in shapes.items():
        size = int(torch.Size(shape).numel())
        entries.append(Entry(name, shape, offset, size, branch))
        offset += size
    return Layout(entries)


def scores_of(flat: Tensor, **metadata: Any) -> Scores:
    return Scores(flat, layout_of(SHAPES), {"method": "altermoma", "seed": 0, **metadata})


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.5]), min_size=44, max_size=44),
    ratio=st.floats(0, 0.999),
)
def test_exactly_k_are_kept_and_ties_go_to_the_first(values: list[float], ratio: float) -> None:
    flat = torch.tensor(values)
    mask = scores_of(flat).mask(ratio)
    keep = round((1 - ratio) * 44)
    kept = torch.cat([mask[name].reshape(-1) for name in mask])
    order = sorted(range(44), key=lambda i: (-values[i], i))
    assert kept.nonzero().flatten().tolist() == sorted(order[:keep])
    assert mask.kept_total == keep
    assert sum(mask.kept_by_branch().values()) == keep
    assert mask.kept == {name: int(mask[name].sum()) for name in mask}


def test_views_by_name_and_branch() -> None:
    flat = torch.arange(44.0)
    scores = scores_of(flat)
    assert torch.equal(scores["a.weight"], flat[:15].view(3, 5))
    assert torch.equal(scores["c.weight"], flat[22:].view(2, 1, 11))
    assert torch.equal(scores.branch("lidar"), flat[15:22])
    assert list(scores) == list(SHAPES)
    mask = scores.mask(0.5)
    assert mask["c.weight"].shape == (2, 1, 11)
    assert mask["c.weight"].all()
    assert not mask["a.weight"].any()
    assert mask.kept_by_branch() == {"camera": 0, "lidar": 0, "fusion": 22}
    with pytest.raises(KeyError, match="not a prunable weight"):
        scores["d.weight"]


@pytest.mark.parametrize("ratio", [1.0, -0.1, 2.0, float("nan")])
def test_a_ratio_outside_the_range_is_refused(ratio: float) -> None:
    with pytest.raises(MaskError, match=r"in \[0, 1\)"):
        scores_of(torch.arange(44.0)).mask(ratio)


def test_nan_scores_are_refused() -> None:
    flat = torch.arange(44.0)
    flat[9] = float("nan")
    with pytest.raises(MaskError, match="NaN"):
        scores_of(flat).mask(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_come_back_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    scores = scores_of(torch.randn(44, dtype=dtype), data="example")
    scores.save(tmp_path / "scores.safetensors")
    again = Scores.load(tmp_path / "scores.safetensors")
    assert torch.equal(again.flat, scores.flat)
    assert again.flat.dtype == dtype
    assert again.layout.entries == scores.layout.entries
    assert {k: again.metadata[k] for k in scores.metadata} == scores.metadata
    mask = scores.mask(0.7)
    mask.save(tmp_path / "mask.safetensors")
    back = Mask.load(tmp_path / "mask.safetensors")
    assert torch.equal(back.bits, mask.bits)
    assert (back.kept, back.ratio, back.threshold) == (mask.kept, mask.ratio, mask.threshold)
    assert back.metadata["data"] == "example"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    scores_of(torch.arange(44.0)).mask(0.5).save(path)
    with pytest.raises(FastalterError, match="expected fastalter scores, found mask"):
        Scores.load(path)
    with pytest.raises(FastalterError, match="no such file"):
        Mask.load(tmp_path / "nothing.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FastalterError, match="not a readable safetensors file"):
        Mask.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    scores_of(torch.arange(44.0)).save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        scores_of(torch.zeros(44), data=object()).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
