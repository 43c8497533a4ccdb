"""After scoring, the model is bitwise what it was; also when something goes wrong in the middle."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastalter
from fastalter.errors import DataError, ScoringError
from tests.altermoma.nets import USER_BRANCHES as BRANCHES
from tests.altermoma.nets import USER_OUTLETS as OUTLETS
from tests.altermoma.nets import SmallFusion, UserNet, seeded, small_batches, user_batches, user_loss

RUN: dict[str, Any] = {"reactivation": fastalter.Reactivation(2, 0.05), "progress": False}


def state(net: nn.Module) -> dict[str, Any]:
    """Everything that must come back, references and bits."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    numpy_state = np.random.get_state()
    return {
        "bits": {n: t.detach().clone() for n, t in [*net.named_parameters(), *net.named_buffers()]},
        "objects": {n: id(t) for n, t in [*net.named_parameters(), *net.named_buffers()]},
        "pointers": {n: t.data_ptr() for n, t in [*net.named_parameters(), *net.named_buffers()]},
        "strides": {n: t.stride() for n, t in net.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in net.named_parameters()},
        "grads": {n: (id(p.grad), None if p.grad is None else p.grad.clone()) for n, p in net.named_parameters()},
        "training": {n: m.training for n, m in net.named_modules()},
        "hooks": {n: [dict(getattr(m, hook)) for hook in hooks] for n, m in net.named_modules()},
        "attributes": {n: sorted(m.__dict__) for n, m in net.named_modules()},
        "random": (random.getstate(), torch.get_rng_state(), numpy_state[1].copy(), numpy_state[2]),  # type: ignore[index,union-attr]
    }


def assert_same(before: Any, after: Any, path: str = "") -> None:
    if isinstance(before, Tensor):
        assert torch.equal(before, after), path
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after), path
    elif isinstance(before, dict):
        assert before.keys() == after.keys(), path
        for key in before:
            assert_same(before[key], after[key], f"{path}/{key}")
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after), path
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            assert_same(one, other, f"{path}/{index}")
    else:
        assert before == after, path


def worn(net: nn.Module) -> nn.Module:
    """A model in the middle of its life: mixed flags, gradients, a hook, a frozen weight."""
    net.eval()
    next(iter(net.children())).train()
    parameters = list(net.parameters())
    parameters[0].grad = torch.randn_like(parameters[0])
    parameters[1].requires_grad_(False)
    net.register_forward_hook(lambda module, arguments, output: None)
    return net


@pytest.mark.parametrize("direct", [False, True])
def test_scoring_leaves_no_trace(direct: bool) -> None:
    net = worn(seeded(UserNet).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    batches = user_batches(3)
    before, data = state(net), [tuple(t.clone() for t in batch) for batch in batches]
    fastalter.score_model(net, batches, branches=BRANCHES, outlets=OUTLETS, loss=user_loss, direct=direct, **RUN)
    assert_same(before, state(net))
    assert_same(data, batches)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("fails_at", range(1, 16, 2))
def test_an_exception_in_the_middle_leaves_no_trace(fails_at: int, direct: bool) -> None:
    net = worn(seeded(SmallFusion))
    before, calls = state(net), 0

    def loss(model: Any, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        total: Tensor = model.loss(batch)["loss_cls"]
        if calls == fails_at:
            raise RuntimeError("the user's own mistake")
        return total

    with pytest.raises(RuntimeError, match="own mistake"):
        fastalter.score_model(net, small_batches(3), loss=loss, direct=direct, **RUN)
    after = state(net)
    for backbone in net.backbones.values():  # type: ignore[union-attr,operator]
        assert backbone.calls > 0
    assert_same(before, after)


def test_a_frozen_weight_is_scored_and_stays_frozen() -> None:
    net = seeded(SmallFusion)
    net.backbones["camera"].requires_grad_(False)  # type: ignore[index,union-attr,operator]
    scores = fastalter.score_model(net, small_batches(3), **RUN)
    assert float(scores.branch("camera").abs().max()) > 0
    assert not any(p.requires_grad for p in net.backbones["camera"].parameters())  # type: ignore[index,union-attr,operator]


def test_a_graph_that_the_owner_holds_stays_valid() -> None:
    """Frozen batch norm moves no buffer; theta comes back, so an earlier graph still describes the model."""
    net = seeded(SmallFusion)
    batches = small_batches(3)
    fastalter.score_model(net, batches, bn="frozen", **(RUN | {"reactivation": fastalter.Reactivation(2, 0.0)}))
    net.loss(batches[0])["loss_cls"].backward()  # type: ignore[operator]


class TestBatches:
    def test_an_iterator_is_refused(self) -> None:
        with pytest.raises(DataError, match="walked only once"):
            fastalter.score_model(seeded(SmallFusion), iter(small_batches(3)), **RUN)

    def test_shuffled_batches_are_refused(self) -> None:
        class Shuffled:
            def __init__(self) -> None:
                self.batches = small_batches(3)

            def __len__(self) -> int:
                return 3

            def __iter__(self) -> Iterator[Any]:
                self.batches = self.batches[1:] + self.batches[:1]
                return iter(self.batches)

        with pytest.raises(DataError, match="batch 0 is not what it was"):
            fastalter.score_model(seeded(SmallFusion), Shuffled(), **RUN)

    def test_too_few_batches_are_refused(self) -> None:
        with pytest.raises(ScoringError, match=r"takes 2 batches and there are 1; .*Reactivation\(batches=1\)"):
            fastalter.score_model(seeded(SmallFusion), small_batches(1), **RUN)

    def test_none_is_for_in_tree_models(self) -> None:
        with pytest.raises(ScoringError, match="batches=None works for in-tree models only"):
            fastalter.score_model(seeded(SmallFusion), **RUN)


class TestNumbersThatAreNotFinite:
    def test_a_loss_names_batch_and_stage(self) -> None:
        batches = small_batches(3)
        batches[1]["camera"][0] = float("nan")
        with pytest.raises(ScoringError, match="batch 1, with nothing masked: the loss is nan"):
            fastalter.score_model(seeded(SmallFusion), batches, **RUN)

    def test_a_runaway_reactivation_names_the_stage(self) -> None:
        with pytest.raises(ScoringError, match="masked"):
            fastalter.score_model(
                seeded(SmallFusion),
                small_batches(3),
                **(RUN | {"reactivation": fastalter.Reactivation(2, 1e300)}),
            )

    def test_a_gradient_names_its_weight(self) -> None:
        net = seeded(SmallFusion)
        net.head.weight.register_hook(lambda grad: grad * float("inf"))  # type: ignore[union-attr,operator]
        with pytest.raises(ScoringError, match=r"head\.weight: its gradient with nothing masked is not finite"):
            fastalter.score_model(net, small_batches(3), **(RUN | {"reactivation": fastalter.Reactivation(1, 0.0)}))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"method": "magic"}, "method 'magic' is not known; there are: altermoma"),
        ({"reri_data": "both"}, "reri_data is 'both'; it takes 'paired' or 'paper'"),
        ({"bn": "eval"}, "bn is 'eval'; it takes 'train' or 'frozen'"),
    ],
)
def test_options_are_checked(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        fastalter.score_model(seeded(SmallFusion), small_batches(3), **(RUN | argument))


def test_a_masked_branch_that_is_not_zero_is_caught_by_the_direct_form() -> None:
    net = seeded(SmallFusion)
    net.backbones["camera"].body.append(nn.Sigmoid())  # type: ignore[index,union-attr,operator]
    with pytest.raises(ScoringError, match=r"backbones\.camera: .*does not return zero"):
        fastalter.score_model(net, small_batches(3), direct=True, **RUN)


def test_an_outlet_that_never_runs_is_named() -> None:
    net = seeded(UserNet)
    net.idle = nn.Conv2d(3, 3, 1)  # type: ignore[assignment]
    branches = {"camera": BRANCHES["camera"], "lidar": [*BRANCHES["lidar"], "idle"]}
    with pytest.raises(fastalter.FastalterError, match=r"outlets\['lidar'\]: 'idle' was not called"):
        fastalter.score_model(
            net, user_batches(3), branches=branches, outlets=OUTLETS | {"lidar": "idle"}, loss=user_loss, **RUN
        )


def test_progress_is_reported_stage_by_stage() -> None:
    seen: list[tuple[str, int, int]] = []
    fastalter.score_model(
        seeded(SmallFusion), small_batches(3), **(RUN | {"progress": lambda *call: seen.append(call)})
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == [
        "start",
        *(f"{what}, {m} masked" for m in ("lidar", "camera") for what in ("reactivate", "end")),
    ]
    for stage in stages:
        done = [d for s, d, _ in seen if s == stage]
        total = {t for s, _, t in seen if s == stage}
        assert done == list(range(max(total) + 1))


class Odd(SmallFusion):
    """What users do: rebind a buffer, clear gradients, draw random numbers, patch a forward, skip the fuser's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fuser = nn.Sequential(nn.Conv2d(9, 8, 3, padding=1, bias=False), nn.ReLU(inplace=True))
        self.register_buffer("seen", torch.zeros(()))
        camera = self.backbones["camera"]
        plain = camera.forward
        camera.forward = lambda x: plain(x) * 2  # type: ignore[method-assign]

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen = self.seen + 1
        self.zero_grad()
        noise = 1 + 0.1 * torch.randn_like(batch["camera"])
        return super().loss(batch | {"camera": batch["camera"] * noise})


class TestOddModels:
    def test_everything_comes_back(self) -> None:
        net = worn(seeded(Odd))
        before, patched = state(net), net.backbones["camera"].forward  # type: ignore[index,union-attr,operator]
        fastalter.score_model(net, small_batches(3), **RUN)
        assert_same(before, state(net))
        assert net.backbones["camera"].forward is patched  # type: ignore[index,union-attr,operator]

    def test_randomness_that_is_left_is_the_same_in_every_pass(self) -> None:
        scores = fastalter.score_model(
            seeded(Odd), small_batches(3), **(RUN | {"reactivation": fastalter.Reactivation(2, 0.0)})
        )
        assert {v for sums in scores.metadata["sums"].values() for v in sums["reri"].values()} == {0.0}

    def test_an_in_place_activation_behind_the_split_convolution(self) -> None:
        net = seeded(Odd)
        split = fastalter.score_model(net, small_batches(3), **RUN)
        net.concat_conv = None  # type: ignore[assignment]
        whole = fastalter.score_model(net, small_batches(3), **RUN)
        assert torch.allclose(split.flat, whole.flat, rtol=0, atol=1e-12 * float(whole.flat.abs().max()))


def test_the_sums_are_those_of_mean_gradients() -> None:
    net = seeded(SmallFusion)
    once = fastalter.score_model(net, small_batches(2), **RUN).metadata["sums"]
    twice = fastalter.score_model(net, small_batches(2) * 2, **RUN).metadata["sums"]
    for branch in once:
        assert twice[branch]["deci"] == pytest.approx(once[branch]["deci"], rel=1e-9)
        assert twice[branch]["reri"] == pytest.approx(once[branch]["reri"], rel=1e-9)
