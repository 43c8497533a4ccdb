"""Plans: they rebuild the compacted network from the original definition, and nothing is taken on trust."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from fastalter.errors import MaskError, ModelError
from fastalter.structure.compaction.compact import compact_model
from fastalter.structure.compaction.cut import Cut, cut_all
from fastalter.structure.compaction.plan import CompactionPlan
from fastalter.structure.compaction.planner import revived
from tests.structure.compact_nets import NETS, Flags, build, random_flags, regrouped


def planned(name, ratio=0.5, seed=0):
    net, inputs, groups = build(name)
    kept = random_flags(groups, ratio, seed)
    return net, inputs, Flags(groups, kept), CompactionPlan.of(groups, kept, net)


@pytest.mark.parametrize("ratio", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", NETS)
def test_a_plan_from_its_file_rebuilds_the_network_from_a_fresh_one(name, ratio, tmp_path):
    net, inputs, mask, plan = planned(name, ratio)
    small = compact_model(net, mask)
    plan.save(tmp_path / "plan.json")
    fresh, _, _ = build(name, seed=1)
    rebuilt = CompactionPlan.load(tmp_path / "plan.json").apply(fresh)
    assert rebuilt is fresh
    rebuilt.load_state_dict(small.state_dict(), strict=True)
    torch.testing.assert_close(rebuilt(*inputs), small(*inputs), rtol=0, atol=0)
    assert [repr(module) for module in rebuilt.modules()] == [repr(module) for module in small.modules()]


@pytest.mark.parametrize("name", NETS)
def test_applied_to_the_original_it_needs_no_loading(name):
    net, inputs, mask, plan = planned(name, 0.8)
    small = compact_model(net, mask)
    torch.testing.assert_close(plan.apply(net)(*inputs), small(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["convs", "encoder", "tied"])
def test_a_model_without_memory_takes_the_shapes(name):
    net, _, mask, plan = planned(name)
    wanted = {key: tensor.shape for key, tensor in compact_model(net, mask).state_dict().items()}
    empty = plan.apply(copy.deepcopy(net).to("meta"))
    assert {key: tensor.shape for key, tensor in empty.state_dict().items()} == wanted
    assert all(tensor.is_meta for tensor in empty.state_dict().values())


def test_json_is_plain_and_says_every_position_once():
    *_, plan = planned("encoder", 0.5)
    document = json.loads(json.dumps(plan.to_json()))
    assert document == plan.to_json()
    assert len({tuple(row) for row in document["positions"]}) == len(document["positions"])
    number = document["tensors"]["embed.weight"]["keep"]["0"]
    assert document["positions"][number] == plan.tensors["embed.weight"].kept[0].tolist()
    assert CompactionPlan.from_json(document).to_json() == document


def test_axes_that_keep_the_same_share_their_positions():
    """On a GPU they are copied there once."""
    *_, plan = planned("encoder", 0.5)
    assert plan.tensors["embed.weight"].kept[0] is plan.tensors["head.weight"].kept[1]


def test_layers_left_with_nothing_are_named_and_keep_one_channel_of_zeros():
    net, _, groups = build("convs")
    kept = torch.ones(groups.size, dtype=torch.bool)
    kept[:6] = False
    plan = CompactionPlan.of(groups, kept, net)
    assert plan.emptied == ["stem"]
    assert plan.tensors["stem.weight"].kept[0].tolist() == [0]
    assert plan.tensors["stem.weight"].zero[0].tolist() == [0]
    assert not plan.tensors["stem_norm.running_mean"].zero
    small = plan.apply(net)
    assert not small.stem.weight.any()
    assert small.stem_norm.running_mean.any()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(4))
def test_two_plans_in_a_row_are_one(name, seed):
    """Some layers lose everything in the first step, some in the second; a channel of zeros may go in the second."""
    net, inputs, groups = build(name)
    kept = random_flags(groups, 0.6, seed)
    first = CompactionPlan.of(groups, kept, net)
    small = first.compacted(net)
    stay = revived(groups, kept)
    flags = random_flags(groups, 0.5, seed + 10)[stay]
    second = CompactionPlan.of(regrouped(groups, stay), flags, small)
    both = first.then(second)
    expected = second.compacted(small)
    torch.testing.assert_close(both.compacted(net)(*inputs), expected(*inputs), rtol=0, atol=0)
    rebuilt = CompactionPlan.from_json(both.to_json()).apply(build(name, seed=1)[0])
    rebuilt.load_state_dict(expected.state_dict(), strict=True)
    torch.testing.assert_close(rebuilt(*inputs), expected(*inputs), rtol=0, atol=0)


def test_a_channel_of_zeros_may_go_in_a_second_cut():
    first = Cut((5,), {0: torch.tensor([1, 3, 4])}, {0: torch.tensor([3])})
    both = first.then(Cut((3,), {0: torch.tensor([0, 2])}))
    assert both.kept[0].tolist() == [1, 4]
    assert both.zero == {}
    assert cut_all([torch.arange(5.0)], [both])[0].tolist() == [1, 4]


def test_plans_that_do_not_follow_each_other_are_refused():
    *_, plan = planned("convs")
    with pytest.raises(ModelError, match=r"is left with shape .* and cut as one of .* next"):
        plan.then(plan)
    narrowed, narrowed_again = (CompactionPlan({}, {"stem": {"out_channels": change}}) for change in ((6, 2), (6, 3)))
    with pytest.raises(ModelError, match=r"stem\.out_channels is left at 2 and changed from 6 next"):
        narrowed.then(narrowed_again)
    with pytest.raises(ModelError, match="compact before folding"):
        CompactionPlan({}, folds=[("stem", "stem_norm")]).then(plan)


# ---- a model that does not fit ---------------------------------------------------------------------------------------


def narrower(net):
    net.head = nn.Linear(11, 2)


def nameless(net):
    del net.up


def counted_otherwise(net):
    net.up_norm.num_groups = 2


class Odd(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) + 1


def of_another_kind(net):
    net.layer_norm.__class__ = Odd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (narrower, r"head\.weight has shape \(2, 11\) and the plan cuts \(2, 12\); build the model"),
        (nameless, r"the plan cuts up\.weight, which the model does not have"),
        (counted_otherwise, r"the plan changes up_norm\.num_groups from 4 and the model has 2 there"),
        (of_another_kind, r"layer_norm: a Odd is no plain LayerNorm"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_stays(change, message):
    net, _, _, plan = planned("convs")
    change(net)
    before = {key: (id(value), value.clone()) for key, value in net.state_dict(keep_vars=True).items()}
    with pytest.raises(ModelError, match=message):
        plan.apply(net)
    assert all(
        id(v) == before[k][0] and torch.equal(v, before[k][1]) for k, v in net.state_dict(keep_vars=True).items()
    )


def test_a_plan_is_applied_once():
    net, _, _, plan = planned("convs")
    plan.apply(net)
    with pytest.raises(ModelError, match="has shape"):
        plan.apply(net)


# ---- a file that is not whole ----------------------------------------------------------------------------------------

T = "tensors", "head.weight"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("kind",), "mask", r"kind is 'mask': not a fastalter compaction plan"),
        (("version",), 2, r"version is 2, this fastalter reads 1"),
        (("more",), 1, r"there is an unknown entry 'more'"),
        (("tensors",), [], r"tensors is \[\], but must be an object"),
        (("attributes",), None, r"attributes is None, but must be an object"),
        (("attentions",), [1], r"attentions\[0\] is 1, but must be a name"),
        (("emptied",), "x", r"emptied is 'x', but must be a list"),
        (("folds",), [["a"]], r"folds\[0\] is \['a'\], but must be a pair"),
        (("folds",), [["a", 1]], r"folds\[0\] is \['a', 1\], but must be the paths"),
        (
            ("layer_norms", "layer_norm"),
            0,
            r"layer_norms\['layer_norm'\] is 0, but must be a whole number of 1 or more",
        ),
        (("layer_norms", "layer_norm"), True, r"layer_norms\['layer_norm'\] is True"),
        (("layer_norms", "layer_norm"), 2**40, r"is 1099511627776"),
        (("positions", 0), [3, 1], r"positions\[0\] must be ascending"),
        (("positions", 0), [], r"positions\[0\] must be ascending positions, at least one"),
        (("positions", 0), [0.5], r"positions\[0\]\[0\] is 0.5, but must be a whole number"),
        (("positions", 0), [-1], r"positions\[0\]\[0\] is -1"),
        ((*T, "shape"), [2, -3], r"tensors\['head\.weight'\]\.shape\[1\] is -3"),
        ((*T, "shape"), None, r"tensors\['head\.weight'\]\.shape is None, but must be a list"),
        ((*T, "keep"), {"2": 0}, r"tensors\['head\.weight'\]\.keep names axis '2' of a tensor of 2 axes"),
        ((*T, "keep"), {"-1": 0}, r"names axis '-1'"),
        ((*T, "keep"), {"1": 99}, r"keep\[1\] is 99, and there are \d+ lists of positions"),
        ((*T, "shape"), [2, 3], r"keep\[1\] names position \d+ of an axis of 3"),
        ((*T, "zero"), {"0": 0}, r"zero\[0\] names position \d+ of an axis of 2"),
        (
            ("attributes", "head", "in_features"),
            [12],
            r"attributes\['head'\]\.in_features is \[12\], but must be a pair",
        ),
        (("attributes", "head", "in_features"), [12, "x"], r"in_features\[1\] is 'x', but must be a whole number"),
        (
            ("attributes", "head", "in_features"),
            [12, [3]],
            r"in_features is \[12, \[3\]\], but must be a plain attribute",
        ),
        (("attributes", "head", "__class__"), [1, 2], r"attributes\['head'\]\.__class__ is \[1, 2\]"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(place, value, message, tmp_path):
    *_, plan = planned("convs")
    document = plan.to_json()
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    with pytest.raises(MaskError, match=message) as caught:
        CompactionPlan.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_zeros_are_among_what_stays():
    *_, plan = planned("convs")
    document = plan.to_json()
    entry = document["tensors"]["stem.weight"]
    gone = sorted(set(range(6)) - set(document["positions"][entry["keep"]["0"]]))
    document["positions"].append(gone)
    entry["zero"] = {"0": len(document["positions"]) - 1}
    with pytest.raises(MaskError, match=r"zero\[0\] names positions that do not stay"):
        CompactionPlan.from_json(document)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "\x00\x01"])
def test_a_file_that_is_no_plan_is_refused(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(MaskError, match=str(path)):
        CompactionPlan.load(path)
    with pytest.raises(MaskError, match=r"cannot be read"):
        CompactionPlan.load(tmp_path / "none.json")
