"""Every network of the zoo: compacted equals masked, is smaller, its plan rebuilds it, and no layer is passed over."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastalter.fusion.tree import tensors
from fastalter.masks import masked
from fastalter.structure.compaction.compact import compact_model, plan_of
from fastalter.structure.compaction.plan import CompactionPlan
from fastalter.structure.grouping.find import find_groups
from fastalter.structure.groups import FIXED, ChannelGroups
from fastalter.structure.mask import ChannelMask
from tests.structure.zoo import KINDS, SETTINGS, Network, Part, Spec, build, specs
from tests.structure.zoo_known import HALVES, KNOWN

RELATIVE = 1e-9
"""Of the largest output, in float64: the same sums with the zeros left out."""

WHOLE = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
ratios = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


def random_mask(groups: ChannelGroups, ratio: float, seed: int) -> ChannelMask:
    """About `ratio` of the groups leave, at random; one of every set stays, at least."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(groups.size, generator=generator)
    flat = draws >= ratio
    for entry in groups.layout.entries:
        flat[entry.offset + int(draws[entry.offset : entry.offset + entry.size].argmax())] = True
    return ChannelMask(flat, groups, ratio=ratio)


def difference(found: Any, expected: Any) -> float:
    """The largest difference of two trees of outputs, over the largest output of each."""
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert pairs
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in pairs)


def made_by(path: str, module: nn.Module) -> tuple[str, int] | None:
    """(weight's name, the axis of the channels that the layer makes)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return f"{path}.weight", 0
    if isinstance(module, nn.ConvTranspose2d):
        return f"{path}.weight", 1
    return None


def passed_over(network: nn.Module, groups: ChannelGroups) -> dict[str, str]:
    """Layer -> what is wrong: output channels that are neither in a group nor kept with a reason."""
    listed: dict[str, int] = {}
    for kept in groups.kept:
        assert kept.reason
        listed[kept.layer] = listed.get(kept.layer, 0) + kept.channels
    found = {}
    for path, module in network.named_modules():
        place = made_by(path, module)
        if place is None:
            continue
        name, dim = place
        channels = network.get_parameter(name).shape[dim]
        axes = {axis.axis: axis.groups for axis in groups.axes_of.get(name, [])}
        grouped = int((axes[dim] != FIXED).sum()) if dim in axes else 0
        said = listed.get(path, 0) or listed.get(path.rpartition(".")[0], 0)  # attention says it of its projections
        if grouped + said < channels:
            found[path] = f"{grouped} of {channels} channels in groups, {said} kept with a reason"
    return found


def check(spec: Spec, ratio: float) -> None:
    network, inputs = build(spec)
    before = copy.deepcopy(network.state_dict())
    groups = find_groups(network, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert groups.size > 0
    assert passed_over(network, groups) == {}
    mask = random_mask(groups, ratio, spec.seed)
    small = compact_model(network, mask)
    with torch.no_grad():
        dense = network(*inputs)
        with masked(network, mask.weights()):
            expected = network(*inputs)
        assert difference(small(*inputs), expected) <= RELATIVE
        assert difference(network(*inputs), dense) == 0
    check_smaller(network, small, mask)
    check_plan(spec, network, small, mask, inputs)


def check_smaller(network: nn.Module, small: nn.Module, mask: ChannelMask) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == expected | mask.groups.compacted_shapes(mask.flat)
    removed = sum(parameter.numel() for parameter in network.parameters())
    removed -= sum(parameter.numel() for parameter in small.parameters())
    assert removed >= int((~mask.flat).sum())  # a channel has a weight at least


def check_plan(spec: Spec, network: Network, small: nn.Module, mask: ChannelMask, inputs: tuple[Tensor, ...]) -> None:
    """A network of the same definition and other weights becomes the compacted one: plan, then weights."""
    plan = CompactionPlan.from_json(json.loads(json.dumps(plan_of(network, mask).to_json())))
    fresh, _ = build(spec, seed=spec.seed + 1)
    rebuilt = plan.apply(fresh)
    rebuilt.load_state_dict(small.state_dict(), strict=True)
    with torch.no_grad():
        assert difference(rebuilt(*inputs), small(*inputs)) <= RELATIVE


@pytest.mark.parametrize(("part", "stays"), KNOWN, ids=str)
def test_of_every_kind_of_block_it_is_known_what_stays(part: Part, stays: str | None) -> None:
    """Nothing but the outputs, or the one thing named in the table: pruning less than that goes red."""
    spec = Spec(0, (8,), ((),), (part,), "map")
    network, inputs = build(spec)
    kept = {kept.layer: kept.reason for kept in find_groups(network, inputs).kept}
    assert "it leaves the network" in kept.pop("out")
    if stays is None:
        assert kept == {}
    else:
        assert [layer for layer, reason in kept.items() if stays not in reason and "did not run" not in reason] == []
    check(spec, 0.5)


@pytest.mark.parametrize(("trunk", "head"), HALVES)
def test_a_channel_that_is_not_zero_when_it_is_removed(trunk: tuple[Part, ...], head: str) -> None:
    check(Spec(0, (8,), ((),), trunk, head), 0.5)


def test_the_table_has_every_kind() -> None:
    assert {part.kind for part, _ in KNOWN} == set(SETTINGS) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(SETTINGS))
@settings(WHOLE, max_examples=2)
@given(data=st.data())
def test_every_kind_of_block(kind: str, data: st.DataObject) -> None:
    check(data.draw(specs(kind)), data.draw(ratios))


@settings(WHOLE, max_examples=40)
@given(spec=specs(), ratio=ratios)
def test_a_sample_of_the_zoo(spec: Spec, ratio: float) -> None:
    check(spec, ratio)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(WHOLE, max_examples=600)
@given(spec=specs(), ratio=ratios)
def test_the_whole_zoo(spec: Spec, ratio: float) -> None:
    check(spec, ratio)
