"""A whole run against an oracle written from the equations, and the shared form against the plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastalter
from fastalter import ops
from fastalter.fusion import adapt, find_weights
from tests.altermoma.nets import (
    SENSORS2,
    SENSORS3,
    USER_BRANCHES,
    USER_OUTLETS,
    SmallFusion,
    UserNet,
    seeded,
    small_batches,
    user_batches,
    user_loss,
)
from tests.altermoma.oracle import alter_eva_oracle

B, LR = 2, 0.05


class Case:
    """A net, its batches, and its seam."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.arguments: dict[str, Any] = {}
        self.sensors = SENSORS3 if name == "three" else SENSORS2
        if name in ("small", "three"):
            self.net = seeded(SmallFusion, self.sensors, dtype=dtype)
            self.batches: list[Any] = small_batches(3, self.sensors, dtype)
            self.loss = lambda net, batch: (d := net.loss(batch))["loss_cls"] + d["loss_reg"]
        else:
            self.net = seeded(UserNet, dtype=dtype)
            if name == "channels_last":
                self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.batches = user_batches(3, dtype)
            self.loss = user_loss
            self.arguments = {"branches": USER_BRANCHES, "outlets": USER_OUTLETS, "loss": user_loss}

    def score(self, **options: Any) -> fastalter.Scores:
        settings: dict[str, Any] = {"reactivation": fastalter.Reactivation(B, LR), "progress": False}
        return fastalter.score_model(self.net, self.batches, **self.arguments, **(settings | options))

    def oracle(self, **options: Any) -> dict[str, Tensor]:
        names = {w.name: w for w in find_weights(adapt(self.net, **self.arguments))}
        settings: dict[str, Any] = {"B": B, "lr": LR, "alpha": 1.0, "beta": 1.0, "reri_data": "paired", "bn": "train"}
        return alter_eva_oracle(
            self.net,
            self.loss,
            self.batches,
            lambda name: names[name].branch,
            [name for name, w in names.items() if w.prunable],
            sensors=self.sensors,
            **(settings | options),
        )


def assert_close(scores: fastalter.Scores, expected: dict[str, Tensor], tolerance: float) -> None:
    """Within `tolerance` of the branch's largest score."""
    assert sorted(scores) == sorted(expected)
    for branch in scores.layout.branches:
        names = [e.name for e in scores.layout.entries if e.branch == branch]
        peak = max(float(expected[n].abs().max()) for n in names)
        assert peak > 0
        worst = max(float((scores[n] - expected[n]).abs().max()) for n in names)
        assert worst <= tolerance * peak, f"{branch}: off by {worst / peak:.1e} of the maximum"


@pytest.mark.parametrize("direct", [False, True], ids=["shared", "direct"])
@pytest.mark.parametrize("bn", ["train", "frozen"])
@pytest.mark.parametrize("reri_data", ["paired", "paper"])
@pytest.mark.parametrize("name", ["small", "three", "user", "channels_last"])
def test_whole_run_equals_the_oracle(name: str, reri_data: str, bn: str, direct: bool) -> None:
    case = Case(name)
    settings = {"alpha": 0.7, "beta": 1.3, "reri_data": reri_data, "bn": bn}
    assert_close(case.score(direct=direct, **settings), case.oracle(**settings), 1e-9)


@pytest.mark.parametrize("name", ["small", "three", "user", "channels_last"])
def test_float32_direct_and_shared_keep_the_same_weights(name: str) -> None:
    case = Case(name, torch.float32)
    shared, direct = (case.score(direct=flag).mask(0.8) for flag in (False, True))
    both = sum(int((shared[n] & direct[n]).sum()) for n in shared)
    assert shared.kept_total == direct.kept_total == round(0.2 * shared.layout.size)
    assert both >= 0.999 * shared.kept_total - 1  # one weight of these tiny nets is more than 0.1 %


@pytest.mark.parametrize("name", ["small", "user"])
def test_zero_learning_rate_and_paired_data_make_reri_exactly_zero(name: str) -> None:
    case = Case(name, torch.float32)
    scores = case.score(reactivation=fastalter.Reactivation(B, 0.0))
    for sums in scores.metadata["sums"].values():
        assert sums["deci"] > 0
        assert set(sums["reri"].values()) == {0.0}
    assert torch.equal(scores.flat, case.score(reactivation=fastalter.Reactivation(B, 0.0), beta=0.0).flat)
    assert any("ReRI" in warning for warning in scores.metadata["warnings"])


def test_paper_data_at_zero_learning_rate_is_batch_noise_and_not_zero() -> None:
    scores = Case("small").score(reactivation=fastalter.Reactivation(B, 0.0), reri_data="paper")
    assert all(value > 0 for sums in scores.metadata["sums"].values() for value in sums["reri"].values())


@pytest.mark.parametrize("name", ["small", "user"])
def test_beta_zero_ranks_inside_a_branch_as_snip_does(name: str) -> None:
    case = Case(name)
    scores = case.score(beta=0.0)
    net, loss = case.net, case.loss
    for parameter in net.parameters():
        parameter.grad = None
    from tests.altermoma.oracle import mode

    sum(loss(mode(net, "train"), batch) for batch in case.batches).backward()  # type: ignore[union-attr]
    parameters = dict(net.named_parameters())
    for branch in scores.layout.branches:
        names = [e.name for e in scores.layout.entries if e.branch == branch]
        snip = torch.cat([(parameters[n].grad * parameters[n]).abs().reshape(-1) for n in names])  # type: ignore[operator]
        ours = torch.cat([scores[n].reshape(-1) for n in names])
        in_snip_order = ours[snip.argsort()]
        assert bool((in_snip_order.diff() >= -1e-12 * ours.max()).all())
        assert snip.unique().numel() > 0.9 * snip.numel()


def test_masked_backbones_are_not_run() -> None:
    net = seeded(SmallFusion)
    fastalter.score_model(net, small_batches(3), reactivation=fastalter.Reactivation(B, LR), progress=False)
    # Each backbone: one forward a batch at the start, then B - 1 steps and 3 end passes while the other is masked.
    assert [backbone.calls for backbone in net.backbones.values()] == [3 + (B - 1) + 3] * 2  # type: ignore[union-attr,operator]


def test_direct_runs_every_pass_in_full() -> None:
    net = seeded(SmallFusion)
    fastalter.score_model(
        net, small_batches(3), reactivation=fastalter.Reactivation(B, LR), progress=False, direct=True
    )
    assert [backbone.calls for backbone in net.backbones.values()] == [3 * 3 + 2 * (B + 3)] * 2  # type: ignore[union-attr,operator]


def test_two_runs_are_bitwise_equal() -> None:
    case = Case("user", torch.float32)
    assert torch.equal(case.score().flat, case.score().flat)


def spy_on_the_fuser(monkeypatch: pytest.MonkeyPatch, net: SmallFusion) -> list[tuple[int, ...]]:
    """Channels of every feature that the fuser's convolution is given, call by call."""
    seen: list[tuple[int, ...]] = []
    forward, fuse = nn.Conv2d._conv_forward, ops.masked_fuse

    def conv(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self is net.fuser[0]:
            seen.append((x.shape[1],))
        return forward(self, x, weight, bias)

    def masked_fuse(first: Tensor, second: Tensor | None, *rest: Any) -> Any:
        seen.append((first.shape[1],) if second is None else (first.shape[1], second.shape[1]))
        return fuse(first, second, *rest)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", conv)
    monkeypatch.setattr(ops, "masked_fuse", masked_fuse)
    return seen


@pytest.mark.parametrize("with_block", [True, False], ids=["block", "products"])
def test_the_fuser_convolution_is_split(monkeypatch: pytest.MonkeyPatch, with_block: bool) -> None:
    """Without its declaration the same scores come from the whole convolution; with it, no call sees all channels."""
    net = seeded(SmallFusion)
    seen = spy_on_the_fuser(monkeypatch, net)
    if not with_block:
        net.fuser[1].register_forward_hook(lambda *_: None)  # what is hooked must run
    run = {"reactivation": fastalter.Reactivation(B, LR), "progress": False}
    split = fastalter.score_model(net, small_batches(3), **run)
    # 3 batches at the start; B - 1 steps and 3 batches while the LiDAR is masked, and again while the camera is.
    start = [(4, 5)] * 3 if with_block else [(4,), (5,)] * 3
    assert sorted(seen) == sorted(start + [(4,), (5,)] * (B - 1 + 3))
    net.concat_conv = None  # type: ignore[assignment]
    seen.clear()
    whole = fastalter.score_model(net, small_batches(3), **run)
    assert set(seen) == {(9,)}
    assert torch.allclose(split.flat, whole.flat, rtol=0, atol=1e-12 * float(whole.flat.abs().max()))
