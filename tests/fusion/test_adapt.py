"""The seam: what is recognised, what is refused and in which words, which weights belong where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastalter.errors import FastalterError, ModelError, ScoringError
from fastalter.fusion import adapt, find_weights
from fastalter.fusion.adapt import sum_losses
from tests.altermoma.nets import USER_BRANCHES, USER_OUTLETS, SmallFusion, UserNet, user_loss


def user(**changes: Any) -> Any:
    return {"branches": USER_BRANCHES, "outlets": USER_OUTLETS, "loss": user_loss} | changes


def test_a_model_may_declare_its_seam() -> None:
    fusion = adapt(SmallFusion())
    assert fusion.branch_names == ["camera", "lidar", "fusion"]
    assert fusion.concat_conv == "fuser.0"


@pytest.mark.parametrize(
    ("paths", "outlet"),
    [
        (["img_backbone", "img_neck", "view_transform", "pts_middle_encoder"], "view_transform"),
        (
            [f"encoders.camera.{part}" for part in ("backbone", "neck", "vtransform")] + ["encoders.lidar.backbone"],
            "encoders.camera.vtransform",
        ),
    ],
    ids=["mmdet3d", "mit"],
)
def test_published_module_names_are_recognised(paths: list[str], outlet: str) -> None:
    model = nn.Module()
    for path in paths:
        parent = model
        *parts, last = path.split(".")
        for part in parts:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, nn.Linear(2, 2))
    assert adapt(model, loss=user_loss).outlets["camera"] == outlet


def test_an_unknown_layout_lists_the_modules_and_the_argument() -> None:
    with pytest.raises(ModelError, match=r"cam_stem, .*pass branches="):
        adapt(UserNet(), loss=user_loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": None}, "no method loss"),
        ({"branches": {"camera": ["cam_stem"]}, "outlets": None}, "two sensors or more"),
        ({"branches": USER_BRANCHES | {"fusion": ["out"]}}, "'fusion' is the name of all that belongs to no sensor"),
        ({"branches": USER_BRANCHES | {"lidar": ["pts_typo"]}}, "no module 'pts_typo'; there are: cam_stem"),
        ({"branches": USER_BRANCHES | {"lidar": ["pts_out", "cam_neck.fine"]}}, "overlap; a module has one branch"),
        ({"outlets": {"camera": "cam_neck"}}, "no outlet for branch 'lidar'"),
        ({"outlets": USER_OUTLETS | {"lidar": "out"}}, "'out' is not a top module of the branch"),
        ({"concat_conv": "nowhere"}, "concat_conv: UserNet has no module 'nowhere'"),
    ],
)
def test_a_wrong_seam_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        adapt(UserNet(), **user(**changes))


def test_weights_of_the_prunable_set() -> None:
    fusion = adapt(UserNet(), **user())
    weights = {w.name: w for w in find_weights(fusion)}
    assert {name for name, w in weights.items() if w.prunable} == {
        *(f"{path}.weight" for path in ("cam_stem", "cam_block.conv", "cam_neck.fine", "cam_neck.coarse")),
        *(f"{path}.weight" for path in ("pts_stem", "pts_out", "mix.out_proj", "out")),
        "mix.in_proj_weight",
    }
    assert weights["cam_block.conv.weight"].branch == "fusion"
    assert fusion.notes == ["cam_block.conv.weight is shared by camera, lidar: it counts as fusion"]
    assert not weights["scale"].learned
    assert weights["norm.weight"].learned


def test_a_predicate_replaces_the_prunable_set() -> None:
    chosen = find_weights(adapt(UserNet(), **user()), lambda name, parameter, module: name.endswith("weight"))
    assert {"norm.weight", "cam_block.norm.weight", "out.weight"} <= {w.name for w in chosen if w.prunable}
    assert not any(w.prunable for w in chosen if w.name == "mix.in_proj_bias")
    with pytest.raises(ModelError, match="branch 'fusion' has no prunable weight"):
        find_weights(adapt(SmallFusion()), lambda name, parameter, module: name.startswith("backbones"))


def test_overlapping_parameters_are_refused_by_name() -> None:
    net = UserNet()
    storage = torch.zeros(20)
    net.out.weight = nn.Parameter(storage[:12].view(3, 4))
    net.out.bias = nn.Parameter(storage[10:13])
    with pytest.raises(ModelError, match=r"out\.weight and out\.bias overlap in storage"):
        find_weights(adapt(net, **user()))


def test_losses_are_summed_by_name() -> None:
    one = torch.ones((), requires_grad=True)
    losses: dict[str, Tensor | list[Tensor]] = {"loss_a": one * 2, "loss_b": [one * 3, one * 4], "accuracy": one * 100}
    assert sum_losses(losses).item() == 9
    assert sum_losses(one * 5).item() == 5
    with pytest.raises(ScoringError, match="nothing differentiable"):
        sum_losses({"accuracy": one})
    with pytest.raises(ScoringError, match="the loss is nan"):
        sum_losses(one * float("nan"))


def test_every_error_is_of_the_family() -> None:
    assert issubclass(ModelError, FastalterError)
    assert issubclass(ScoringError, FastalterError)
