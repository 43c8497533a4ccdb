"""N:M masks: every run of m consecutive inputs keeps its n highest scores; which layers take part, and why not."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastalter
from fastalter import Mask, Scores
from fastalter.altermoma import Entry, Layout
from fastalter.errors import MaskError
from fastalter.masks.n_m import as_matrix, from_matrix, layer_kinds


def layout_of(shapes: dict[str, tuple[int, ...]]) -> Layout:
    return Layout.from_json([[name, shape, "fusion"] for name, shape in shapes.items()])


def scores_of(shapes: dict[str, tuple[int, ...]], layers: dict[str, str], flat: Tensor, **facts: Any) -> Scores:
    return Scores(flat, layout_of(shapes), {"method": "altermoma", "seed": 7, "layers": layers, **facts})


def runs_of(score: Tensor, m: int) -> list[list[tuple[int, ...]]]:
    """Places of every run, counted out one by one: one output, one place of the kernel, m inputs in a row."""
    rows, inputs, *kernel = score.shape
    return [
        [(row, first + step, *place) for step in range(m)]
        for row in range(rows)
        for place in itertools.product(*map(range, kernel))
        for first in range(0, inputs, m)
    ]


patterns = st.integers(2, 8).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m)))
few = [0.0, -0.0, 1.0, 2.0, -3.5, float("inf"), float("-inf")]  # ties abound


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    n_m=patterns,
    rows=st.integers(1, 5),
    count=st.integers(1, 4),
    kernel=st.sampled_from([(), (1, 1), (3, 3)]),
    values=st.sampled_from(["few", "many"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_run_keeps_exactly_its_highest_and_ties_go_to_the_lower_index(
    data: st.DataObject, n_m: tuple[int, int], rows: int, count: int, kernel: Any, values: str, dtype: torch.dtype
) -> None:
    n, m = n_m
    shape = (rows, count * m, *kernel)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    if values == "few":
        flat = torch.tensor(few, dtype=dtype)[torch.randint(len(few), (math.prod(shape),), generator=generator)]
    else:
        flat = torch.randn(math.prod(shape), dtype=dtype, generator=generator)
    kind = "Conv2d" if kernel else "Linear"
    mask = scores_of({"a": shape}, {"a": kind}, flat).mask(n_m=n_m)
    score = flat.view(shape)
    for run in runs_of(score, m):
        best = sorted(range(m), key=lambda i: (-float(score[run[i]]), i))[:n]
        assert [i for i in range(m) if mask["a"][run[i]]] == sorted(best)
    assert mask.kept == {"a": math.prod(shape) // m * n}
    assert mask.ratio == 1 - n / m
    assert mask.threshold == float(score[mask["a"]].min())


def test_runs_of_a_convolution_lie_along_its_input_channels() -> None:
    score = torch.zeros(1, 4, 3, 3)
    score[0, 1], score[0, 3] = 5.0, 4.0  # two of four channels, at every place of the kernel
    mask = scores_of({"a": (1, 4, 3, 3)}, {"a": "Conv2d"}, score.flatten()).mask(n_m=(2, 4))
    assert torch.equal(mask["a"], score > 0)


def test_the_matrix_of_a_convolution_is_that_of_channels_last() -> None:
    weight = torch.arange(2 * 4 * 9.0).view(2, 4, 3, 3)
    rows = weight.contiguous(memory_format=torch.channels_last).as_strided((2, 36), (36, 1))
    assert torch.equal(as_matrix(weight), rows)
    assert torch.equal(from_matrix(as_matrix(weight), (2, 4, 3, 3)), weight)
    assert from_matrix(as_matrix(weight), (2, 4, 3, 3)).is_contiguous()
    point = torch.arange(8.0).view(2, 4, 1, 1)
    again = from_matrix(as_matrix(point), (2, 4, 1, 1))
    assert torch.equal(again, point)
    assert again.stride() == point.stride()  # else a convolution takes it for channels last, and rounds otherwise


class Net(nn.Module):
    """A layer of every kind that a model may have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 5, padding=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 1)
        self.line = nn.Conv1d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.camera = nn.Conv2d(8, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 12, 1)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.up(self.grouped(self.wide(self.stem(x)))).relu())
        y = self.line(y.flatten(2)).view_as(y)
        tokens = self.point(self.camera(y)).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0])  # type: ignore[no-any-return]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()  # type: ignore[no-any-return]


TAKING_PART = {
    "camera.weight",
    "point.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "head.weight",
}
REASONS = {
    "stem.weight": "3 inputs: no multiple of 4",
    "wide.weight": "a kernel of 5x5: 1x1 and 3x3 take part",
    "grouped.weight": "Conv2d of 2 groups: linear layers",
    "up.weight": "ConvTranspose2d: linear layers",
    "line.weight": "Conv1d: linear layers",
}


def scored_net() -> tuple[Net, Scores]:
    torch.manual_seed(0)
    net = Net()
    batches = [torch.randn(2, 3, 6, 6) for _ in range(2)]
    branches, outlets = {"camera": ["stem", "wide"], "lidar": ["grouped"]}, {"camera": "wide", "lidar": "grouped"}
    adapted = fastalter.fusion.adapt(net, branches=branches, outlets=outlets, loss=loss)
    return net, fastalter.score_model(adapted, batches, method="snip", progress=False)


def test_a_scored_model_knows_which_of_its_layers_take_part(tmp_path: Path) -> None:
    net, scores = scored_net()
    scores.save(tmp_path / "scores.safetensors")
    mask = Scores.load(tmp_path / "scores.safetensors").mask(n_m=(2, 4))
    assert mask.metadata["n_m"] == [2, 4]
    assert mask.metadata["method"] == "snip"
    assert mask.metadata["dense"].keys() == REASONS.keys()
    assert all(mask.metadata["dense"][name].startswith(reason) for name, reason in REASONS.items())
    for name, parameter in net.named_parameters():
        if name in mask:
            share = 0.5 if name in TAKING_PART else 1.0
            assert mask.kept[name] == share * parameter.numel(), name
    mask.save(tmp_path / "mask.safetensors")
    again = Mask.load(tmp_path / "mask.safetensors")
    assert torch.equal(again.bits, mask.bits)
    assert (again.metadata["n_m"], again.metadata["dense"]) == (mask.metadata["n_m"], mask.metadata["dense"])


def test_a_model_pruned_two_of_four_is_held_there_through_training() -> None:
    net, scores = scored_net()
    mask = scores.mask(n_m=(2, 4))
    fastalter.prune_model(net, mask)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    before = net.head.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        loss(net, torch.randn(2, 3, 6, 6)).backward()
        optimizer.step()
    assert not torch.equal(net.head.weight, before)
    for name, parameter in net.named_parameters():
        if name in TAKING_PART:
            for run in runs_of(parameter, 4):
                assert sum(bool(parameter[place] != 0) for place in run) == 2, name


def test_kinds_are_told_by_the_layers_and_not_by_shapes() -> None:
    net = Net()
    entries = [Entry(name, tuple(p.shape), 0, 0, "fusion") for name, p in net.named_parameters()]
    kinds = layer_kinds(net, Layout(entries))
    assert {name for name, kind in kinds.items() if kind == "Linear"} == {"attention.out_proj.weight", "head.weight"}
    assert {name for name, kind in kinds.items() if kind == "MultiheadAttention"} == {"attention.in_proj_weight"}
    assert {name for name, kind in kinds.items() if kind == "Conv2d"} == {
        f"{name}.weight" for name in ("stem", "wide", "camera", "point")
    }
    assert kinds["head.bias"] == "bias of Linear"
    assert kinds["norm.weight"] == "BatchNorm2d"
    assert kinds["grouped.weight"] == "Conv2d of 2 groups"


SHAPES, LAYERS = {"a": (2, 8), "b": (2, 3, 1, 1)}, {"a": "Linear", "b": "Conv2d"}


@pytest.mark.parametrize("n_m", [(4, 4), (0, 4), (2, 65), (2.0, 4), (True, 4), (2,), "24", 2, (4, 2)])
def test_what_is_no_pattern_is_refused(n_m: Any) -> None:
    with pytest.raises(MaskError, match=r"n_m is .*; give how many of how many stay, as \(2, 4\)"):
        scores_of(SHAPES, LAYERS, torch.rand(22)).mask(n_m=n_m)


def test_what_does_not_go_with_a_pattern_is_refused() -> None:
    scores = scores_of(SHAPES, LAYERS, torch.rand(22))
    assert torch.equal(scores.mask(0.5, n_m=(2, 4)).bits, scores.mask(n_m=(2, 4)).bits)
    assert scores.mask(2 / 3, n_m=(1, 3)).kept == {"a": 16, "b": 2}
    with pytest.raises(MaskError, match=r"ratio is 0\.8 and n_m=2:4 prunes 0\.5; leave the ratio out"):
        scores.mask(0.8, n_m=(2, 4))
    with pytest.raises(MaskError, match=r"min_keep=0\.1: with n_m every layer keeps its share"):
        scores.mask(n_m=(2, 4), min_keep=0.1)
    with pytest.raises(MaskError, match=r"ratio is 0\.5: these scores of altermoma are for 0\.9 alone"):
        scores_of(SHAPES, LAYERS, torch.rand(22), for_ratio=0.9).mask(n_m=(2, 4))
    with pytest.raises(MaskError, match="these scores do not say what kind of layer b is; score"):
        scores_of(SHAPES, {"a": "Linear"}, torch.rand(22)).mask(n_m=(2, 4))
    with pytest.raises(MaskError, match=r"n_m=2:5: none of 2 weights can take part \(3 inputs: no .*; 8 inputs: no"):
        scores.mask(n_m=(2, 5))


def test_scores_that_decide_must_be_numbers() -> None:
    flat = torch.rand(22)
    flat[17] = float("nan")  # in b, which stays dense
    assert scores_of(SHAPES, LAYERS, flat).mask(n_m=(2, 4)).kept == {"a": 8, "b": 6}
    flat[3] = float("nan")
    with pytest.raises(MaskError, match="scores of a hold NaN"):
        scores_of(SHAPES, LAYERS, flat).mask(n_m=(2, 4))
