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
from fastalter.artifacts import read_artifact, write_artifact
from fastalter.errors import MaskError
from fastalter.masks import emptied, keep_count, select

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


def oracle_with_floors(values: list[float], sizes: list[int], keep: int, floors: list[int]) -> list[int]:
    """Indices kept, by the definition: each layer's best `floor` first, then the best of all that is left."""
    chosen: set[int] = set()
    start = 0
    for size, floor in zip(sizes, floors, strict=True):
        chosen |= set(sorted(range(start, start + size), key=lambda i: (-values[i], i))[:floor])
        start += size
    rest = sorted((i for i in range(start) if i not in chosen), key=lambda i: (-values[i], i))
    return sorted(chosen | set(rest[: keep - len(chosen)]))


def layers_of(sizes: list[int]) -> Layout:
    return layout_of({f"{i}.weight": ("fusion", (size,)) for i, size in enumerate(sizes)})


@settings(max_examples=300, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), ratio=st.floats(0, 0.999))
def test_floors_keep_the_best_of_every_layer_and_exactly_k(data: st.DataObject, sizes: list[int], ratio: float) -> None:
    total = sum(sizes)
    value = st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.5, float("inf"), float("-inf")]) | st.floats(-9, 9, width=32)
    values = data.draw(st.lists(value, min_size=total, max_size=total))
    min_keep = data.draw(st.integers(1, 45) | st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7]))
    hundredths = round(100 * min_keep)
    floors = [min(min_keep, n) if isinstance(min_keep, int) else -(-hundredths * n // 100) for n in sizes]
    score, layout, keep = torch.tensor(values), layers_of(sizes), keep_count(total, ratio)
    if sum(floors) > keep:
        with pytest.raises(
            MaskError, match=rf"min_keep={min_keep}: the {len(sizes)} layers need {sum(floors):,} weights"
        ):
            select(score, layout, keep, ratio=ratio, min_keep=min_keep)
        return
    mask = select(score, layout, keep, ratio=ratio, min_keep=min_keep, metadata={"seed": 0})
    flags = torch.cat([mask[name] for name in mask])
    kept = flags.nonzero().flatten().tolist()
    assert kept == oracle_with_floors(values, sizes, keep, floors)
    assert mask.kept == {name: int(mask[name].sum()) for name in mask}
    assert mask.kept_total == keep
    assert mask.threshold == (min(values[i] for i in kept) if kept else float("inf"))
    names = [f"{i}.weight" for i in range(len(sizes))]
    assert set(mask.metadata["raised"]) <= {n for n, f in zip(names, floors, strict=True) if mask.kept[n] == f}
    assert mask.metadata["min_keep"] == min_keep
    assert mask.metadata["seed"] == 0
    again = select(score, layout, keep, ratio=ratio, min_keep=min_keep)
    assert torch.equal(again.bits, mask.bits)


def test_floors_that_all_layers_have_anyway_change_nothing() -> None:
    score, layout = torch.rand(300, generator=torch.Generator().manual_seed(0)), layers_of([100, 100, 100])
    plain = select(score, layout, 150, ratio=0.5)
    floored = select(score, layout, 150, ratio=0.5, min_keep=0.1)
    assert torch.equal(plain.bits, floored.bits)
    assert plain.threshold == floored.threshold
    assert floored.metadata == {"min_keep": 0.1, "raised": []}
    assert plain.metadata == {}


def test_raising_one_layer_may_bring_another_below_its_floor() -> None:
    score = torch.tensor([9.0] * 6 + [5.0, 5.0, 5.0, 1.0] + [0.0] * 4)
    mask = select(score, layers_of([6, 4, 4]), 9, ratio=5 / 14, min_keep=2)
    assert mask.kept == {"0.weight": 5, "1.weight": 2, "2.weight": 2}
    assert mask.metadata["raised"] == ["1.weight", "2.weight"]
    assert mask.threshold == 0.0


@pytest.mark.parametrize("min_keep", [0, -1, 0.0, 1.0, 1.5, float("nan"), True, "0.1"])
def test_a_floor_that_is_neither_share_nor_count_is_refused(min_keep: Any) -> None:
    with pytest.raises(MaskError, match=r"min_keep is .*; give each layer's least share, such as 0\.01, or a count"):
        select(torch.arange(10.0), layers_of([10]), 5, ratio=0.5, min_keep=min_keep)


def test_a_share_is_the_decimal_that_was_written() -> None:
    mask = select(torch.arange(60.0), layers_of([30, 30]), 30, ratio=0.5, min_keep=0.1)
    assert mask.kept == {"0.weight": 3, "1.weight": 27}


def test_floors_that_cannot_be_met_say_what_can() -> None:
    said = r"need 40 weights for it and 20 stay; lower min_keep, or prune at most a ratio of 0\.6"
    with pytest.raises(MaskError, match=said):
        select(torch.arange(100.0), layers_of([50, 50]), 20, ratio=0.8, min_keep=20)
    select(torch.arange(100.0), layers_of([50, 50]), keep_count(100, 0.6), ratio=0.6, min_keep=20)


def test_layers_that_a_mask_empties_are_named() -> None:
    mask = select(torch.arange(30.0), layers_of([10, 10, 10]), 15, ratio=0.5)
    assert emptied(mask) == ["0.weight"]
    assert emptied(select(torch.arange(30.0), layers_of([10, 10, 10]), 15, ratio=0.5, min_keep=1)) == []
    assert emptied(select(torch.arange(30.0), layers_of([10, 10, 10]), 0, ratio=0.999)) == [
        f"{i}.weight" for i in range(3)
    ]


@pytest.mark.parametrize("size", [1, 64, 65, 1_000_003])
def test_a_mask_file_is_an_eighth_of_a_byte_per_weight_and_a_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "mask.safetensors"
    layout = layers_of([size])
    select(torch.rand(size), layout, size // 5, ratio=0.8).save(path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")  # the length of the header comes first
    assert len(content) - header <= size / 8 + 8  # whole words of 64 bits
    assert header < 600
    if size > 100_000:
        assert len(content) < 1.01 * (4 * size) / 32 + 600


def broken(path: Path, change: dict[str, Any], bits: Tensor | None = None) -> Path:
    """A mask file with other metadata, or other bits."""
    tensors, document = read_artifact(path, "mask")
    kind = document.pop("kind")
    document = {key: value for key, value in {**document, **change}.items() if value is not None}
    write_artifact(path, kind, {"mask": tensors["mask"] if bits is None else bits}, document)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layout": None}, "not a whole mask file"),
        ({"layout": [["a.weight"]]}, "not a whole mask file"),
        ({"layout": 7}, "not a whole mask file"),
        ({"ratio": None}, "not a whole mask file"),
        ({"kept": None}, "not a whole mask file"),
        ({"kept": [1, 2, 3]}, "bits are not those that its counts tell of"),
        ({"layout": [["a.weight", [5000], "camera"]]}, "does not fit its layout of 5,000 weights"),
        ({"layout": [["a.weight", [-5], "camera"]]}, "not a whole mask file .*a.weight has a negative size"),
    ],
)
def test_a_mask_file_that_was_changed_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "mask.safetensors"
    scores_of(torch.arange(44.0)).mask(0.5).save(path)
    with pytest.raises(MaskError, match=says) as caught:
        Mask.load(broken(path, change))
    assert str(caught.value).startswith(str(path))


def test_a_mask_file_with_flipped_or_misshapen_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    mask = scores_of(torch.arange(44.0)).mask(0.5)
    mask.save(path)
    flipped = mask.bits.clone()
    flipped[0] ^= 1
    with pytest.raises(MaskError, match="it is damaged, make it again"):
        Mask.load(broken(path, {}, flipped))
    for bits in (mask.bits.view(2, 4), mask.bits.float(), mask.bits[:2].clone()):
        with pytest.raises(MaskError, match="does not fit its layout of 44 weights"):
            Mask.load(broken(path, {}, bits))
