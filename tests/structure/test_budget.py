"""Which groups stay: against brute force over every number of groups, and by cutting the slices out of the tensors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastalter.altermoma import Entry, Layout
from fastalter.errors import MaskError
from fastalter.structure.budget import Budget, Cost, select_channels
from fastalter.structure.groups import FIXED, Axis, ChannelGroups, Gate
from tests.structure.nets import SETS, GatedNet, groups_of, seeded

BUDGETS: tuple[Budget, ...] = ("channels", "parameters", "flops")


def groups() -> ChannelGroups:
    return groups_of(seeded(GatedNet))


def wide(name: str = "mix") -> ChannelGroups:
    """One layer of 64 channels, of which 10 stay and 14 lie in pairs, as 47 groups; a second one of 20 groups."""
    first, second = torch.arange(47), torch.arange(47, 67)
    fixed = torch.cat([first, torch.full((10,), FIXED), torch.arange(7) * 3])
    return ChannelGroups(
        layout=Layout([Entry(name, (47,), 0, 47, "camera"), Entry("last", (20,), 47, 20, "fusion")]),
        axes=[Axis("mix.weight", 0, fixed), Axis("last.weight", 1, fixed), Axis("last.weight", 0, second)],
        gates=[
            Gate("mix", "mix.weight", None, 0, fixed),
            Gate("added", "added.weight", None, 0, fixed),  # a residual add: no more channels for that
            Gate("last", "last.weight", None, 0, second),
        ],
        shapes={"mix.weight": (64, 3), "last.weight": (20, 64)},
        flops={"mix.weight": 90.0, "last.weight": 7.0},
    )


def channels_of(groups: ChannelGroups) -> list[int]:
    """How many channels each group has, as the nets above were written."""
    if groups.size == 33:
        return [1] * 10 + [2] * 4 + [1] * 17 + [4, 4]
    return [2 if i in range(0, 21, 3) else 1 for i in range(67)]


def cost(groups: ChannelGroups, kept: Tensor, budget: str) -> float:
    """By cutting the slices out of tensors of zeros."""
    if budget == "channels":
        return float(kept.sum())
    total, stays = 0.0, [*kept.tolist(), True]
    for name, shape in groups.shapes.items():
        if name not in groups.buffers:
            tensor = torch.zeros(shape)
            for axis in (a for a in groups.axes if a.tensor == name):
                places = [i for i, g in enumerate(axis.groups.tolist()) if stays[g]]
                tensor = tensor.index_select(axis.axis, torch.tensor(places, dtype=torch.long))
            total += tensor.numel() * (1.0 if budget == "parameters" else groups.flops.get(name, 0.0))
    own = groups.group_flops[kept] if groups.group_flops.numel() else torch.zeros(1)
    return total + (float(own.sum()) if budget == "flops" else 0.0)


def brute_force(
    groups: ChannelGroups, score: list[float], ratio: float, budget: str, floors: list[int], round_to: int | None
) -> list[int] | None:
    """Try every number of groups, from all of them down; None where nothing is cheap enough."""
    places = [range(e.offset, e.offset + e.size) for e in groups.layout.entries]
    channels = channels_of(groups)
    first = [sorted(p, key=lambda i: (-score[i], i))[:n] for p, n in zip(places, floors, strict=True)]
    chosen = [i for part in first for i in part]
    rest = sorted((i for i in range(groups.size) if i not in chosen), key=lambda i: (-score[i], i))
    whole = cost(groups, torch.ones(groups.size, dtype=torch.bool), budget)
    most = round((1 - ratio) * groups.size) if budget == "channels" else (1 - ratio) * whole * (1 + 1e-12)
    for extra in range(len(rest), -1, -1):
        kept = {*chosen, *rest[:extra]}
        for entry, place in zip(groups.layout.entries, places, strict=True):
            ranked = sorted(place, key=lambda i: (-score[i], i))
            count = sum(i in kept for i in place)
            while round_to and not entry.name.endswith(".heads") and count < len(ranked):
                if sum(channels[i] for i in ranked[:count]) % round_to == 0:
                    break
                count += 1
            kept |= set(ranked[:count])
        flat = torch.tensor([i in kept for i in range(groups.size)])
        if cost(groups, flat, budget) <= most:
            return sorted(kept)
    return None


VALUE = st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.5]) | st.floats(-9, 9, width=32)


@settings(max_examples=150, deadline=None)
@given(
    found=st.sampled_from([groups(), wide()]),
    values=st.lists(VALUE, min_size=67, max_size=67),
    ratio=st.floats(0, 0.999),
    budget=st.sampled_from(BUDGETS),
    min_keep=st.none() | st.integers(1, 3) | st.sampled_from([0.25, 0.5]),
    round_to=st.none() | st.sampled_from([8, 16]),
)
def test_the_most_groups_that_a_budget_allows(
    found: ChannelGroups,
    values: list[float],
    ratio: float,
    budget: Budget,
    min_keep: float | None,
    round_to: int | None,
) -> None:
    score = values[: found.size]
    least = [math.ceil(min_keep * e.size) if isinstance(min_keep, float) else min(min_keep or 1, e.size)
             for e in found.layout.entries]  # fmt: skip
    expected = brute_force(found, score, ratio, budget, least, round_to)
    options: dict[str, Any] = {"budget": budget, "min_keep": min_keep, "round_to": round_to}
    if expected is None:
        with pytest.raises(MaskError, match=r"need more than a ratio of .* leaves; prune at most a ratio of"):
            select_channels(torch.tensor(score), found, ratio, **options)
        return
    mask = select_channels(torch.tensor(score), found, ratio, **options)
    assert mask.flat.nonzero().flatten().tolist() == expected
    assert mask.threshold == min(score[i] for i in expected)
    assert all(mask.kept[e.name] >= n for e, n in zip(found.layout.entries, least, strict=True))
    whole = torch.ones(found.size, dtype=torch.bool)
    for name, reached in mask.metadata["reached"].items():
        assert reached == pytest.approx(1 - cost(found, mask.flat, name) / cost(found, whole, name), abs=1e-12)


def test_without_round_to_the_budget_of_channels_is_exact() -> None:
    score = torch.rand(33, generator=torch.Generator().manual_seed(0))
    for ratio in (0.0, 0.1, 0.5, 0.75):
        mask = select_channels(score, groups(), ratio)
        assert mask.kept_total == round((1 - ratio) * 33)
        assert mask.ratio == ratio
    assert sorted(mask.metadata["reached"]) == sorted(BUDGETS)


def test_the_metadata_tell_budget_floors_and_what_was_raised_or_filled() -> None:
    score = torch.arange(33.0)  # the camera's stem is lowest
    facts = select_channels(score, groups(), 0.6, budget="flops", metadata={"seed": 3}).metadata
    assert (facts["budget"], facts["min_keep"], facts["round_to"], facts["seed"]) == ("flops", None, None, 3)
    assert facts["raised"] == [f"backbones.{name}" for name in list(SETS)[:5]]
    assert (facts["filled"], facts["granularity"]) == (0, "channel")
    assert facts["reached"]["flops"] >= 0.6
    plain = select_channels(score, groups(), 0.0)
    assert plain.metadata["raised"] == []
    assert plain.metadata["filled"] == 0
    assert plain.metadata["reached"] == {"channels": 0, "parameters": 0, "flops": 0}


def test_what_was_filled_up_is_what_the_scores_alone_would_not_keep() -> None:
    filled = []
    for seed in range(10):
        score = torch.rand(67, generator=torch.Generator().manual_seed(seed))
        mask = select_channels(score, wide(), 0.5, min_keep=0.1, round_to=8)
        assert (mask.metadata["round_to"], mask.metadata["min_keep"]) == (8, 0.1)
        filled.append(mask.metadata["filled"])
        chosen = select_channels(score, wide(), 1 - (mask.kept_total - filled[-1]) / 67)
        assert bool((mask.flat | ~chosen.flat).all())
    assert max(filled) > 0


def test_the_highest_ratio_that_it_names_can_be_had_and_a_higher_one_not() -> None:
    score = torch.rand(33, generator=torch.Generator().manual_seed(1))
    for options in ({"budget": "flops"}, {"budget": "parameters", "round_to": 8}, {"min_keep": 2}):
        with pytest.raises(MaskError) as caught:
            select_channels(score, groups(), 0.99, **options)  # type: ignore[arg-type]
        highest = float(str(caught.value).split("at most a ratio of ")[1].split(",")[0])
        select_channels(score, groups(), highest, **options)  # type: ignore[arg-type]
        with pytest.raises(MaskError):
            select_channels(score, groups(), highest + 0.02, **options)  # type: ignore[arg-type]
    with pytest.raises(MaskError, match=r"flops: one channel of each of the 7 sets need more than a ratio of 0.99"):
        select_channels(score, groups(), 0.99, budget="flops")
    with pytest.raises(MaskError, match=r"min_keep=2 and round_to=8 need more"):
        select_channels(score, groups(), 0.99, min_keep=2, round_to=8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": "weights"}, r"budget is 'weights'; it takes 'channels', 'parameters', 'flops'"),
        ({"round_to": 4}, "round_to is 4; it takes 8 or 16"),
        ({"round_to": True}, "round_to is True"),
        ({"min_keep": 0}, "min_keep is 0; give each layer's least share"),
        ({"ratio": 1.0}, r"in \[0, 1\)"),
        ({"ratio": float("nan")}, r"in \[0, 1\)"),
        ({"ratio": -0.1, "budget": "parameters"}, r"in \[0, 1\)"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MaskError, match=says):
        select_channels(torch.rand(33), groups(), options.pop("ratio", 0.5), **options)


def test_nan_scores_and_unknown_flops_are_refused() -> None:
    score = torch.rand(33)
    unknown = dataclasses.replace(groups(), flops={}, group_flops=torch.zeros(0, dtype=torch.float64))
    with pytest.raises(MaskError, match="flops: these channel groups know none"):
        select_channels(score, unknown, 0.5, budget="flops")
    mask = select_channels(score, unknown, 0.5)
    assert sorted(mask.metadata["reached"]) == ["channels", "parameters"]
    score[7] = float("nan")
    with pytest.raises(MaskError, match="NaN"):
        select_channels(score, groups(), 0.5)


def test_a_set_that_has_no_more_channels_stays_whole() -> None:
    for round_to, allowed in ((8, {8, 16, 20}), (16, {16, 20})):
        seen = set()
        for seed in range(40):
            score = torch.rand(67, generator=torch.Generator().manual_seed(seed))
            mask = select_channels(score, wide(), 0.01 * seed, round_to=round_to)
            in_mix = sum(c for c, kept in zip(channels_of(wide()), mask["mix"].tolist(), strict=False) if kept)
            assert in_mix % round_to == 0 or mask.kept["mix"] == 47
            seen.add(mask.kept["last"])
        assert seen == allowed


def test_heads_are_not_rounded() -> None:
    score = torch.cat([torch.rand(47) + 1, torch.rand(20)])
    mask = select_channels(score, wide("mix.heads#2"), 0.5, round_to=8)
    assert mask.kept == {"mix.heads#2": 26, "last": 8}


def test_cost_of_all_and_of_nothing() -> None:
    found = Cost(wide())
    assert found.whole == {"channels": 67, "parameters": 64 * 3 + 20 * 64, "flops": 90 * 64 * 3 + 7 * 20 * 64}
    nothing = torch.zeros(67, dtype=torch.bool)
    assert found.of(nothing, "parameters") == 10 * 3
