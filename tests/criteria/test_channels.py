"""Scores of channels: every criterion that can, against gates that are real tensors, to 1e-9 of the maximum."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastalter
from fastalter.altermoma import Arena
from fastalter.artifacts import read_artifact, write_artifact
from fastalter.criteria import CRITERIA, Problem, Ranking
from fastalter.errors import DataError, MaskError, ScoringError
from fastalter.structure.groups import ChannelGroups
from fastalter.structure.mask import ChannelMask
from tests.altermoma.oracle import mode, reactivated
from tests.fusion.test_preserve import assert_same, state, worn
from tests.structure.nets import SETS, GatedNet, groups_of, seeded, small_batches
from tests.structure.test_channel_mask import assert_same_groups

B, LR = 2, 0.05
BATCHES = small_batches(3)
ON_CHANNELS = ("modalfisher", "altermoma", "deci", "snip", "magnitude", "random", "prospr")
NAMES = {name: name if branch == "fusion" else f"backbones.{name}" for name, (branch, _) in SETS.items()}


@pytest.fixture
def net() -> GatedNet:
    return seeded(GatedNet)  # type: ignore[return-value]


def score(net: nn.Module, method: Any = "altermoma", batches: list[Any] | None = None, **options: Any) -> Any:
    settings = {"groups": groups_of(net), "reactivation": fastalter.Reactivation(B, LR), "progress": False} | options
    return fastalter.score_model(net, batches or BATCHES, method=method, granularity="channel", **settings)


def loss(net: nn.Module, batch: Any) -> Tensor:
    return net.loss(batch)  # type: ignore[operator,no-any-return]


def branch_of(name: str) -> str:
    return name.split(".")[1] if name.startswith("backbones.") else "fusion"


def gate_gradients(net: nn.Module, batches: list[Any], masked: str | None, bn: str) -> dict[str, Tensor]:
    """dL/dm of the mean loss, the gates real tensors and the masked branch's parameters zero."""
    work = mode(copy.deepcopy(net), bn)
    with torch.no_grad():
        for name, parameter in work.named_parameters():
            if branch_of(name) == masked:
                parameter.mul_(0)
    gates = work.real_gates()  # type: ignore[operator]
    total: Tensor = sum(loss(work, batch) for batch in batches) / len(batches)  # type: ignore[assignment]
    found = torch.autograd.grad(total, list(gates.values()), allow_unused=True)
    return {NAMES[n]: torch.zeros_like(m) if g is None else g for (n, m), g in zip(gates.items(), found, strict=True)}


def alter_eva(net: nn.Module, alpha: float, beta: float, reri_data: str, bn: str) -> dict[str, Tensor]:
    """S per set, from the definition."""
    deci = {n: g.abs() for n, g in gate_gradients(net, BATCHES, None, bn).items()}
    reri: dict[str, dict[str, Tensor]] = {}
    for masked in ("camera", "lidar"):
        frozen = [n for n, _ in net.named_parameters() if branch_of(n) == masked]
        moved = reactivated(net, loss, BATCHES[:B], frozen, LR, bn)
        start = gate_gradients(net, BATCHES, masked, bn)
        end = gate_gradients(moved, BATCHES if reri_data == "paired" else [BATCHES[B - 1]], masked, bn)
        reri[masked] = {n: (start[n] - end[n]).abs() for n in start}
    scores = {}
    for name in NAMES.values():
        branch = branch_of(name)
        mates = [n for n in NAMES.values() if branch_of(n) == branch]
        found = alpha * deci[name] / sum(deci[n].sum() for n in mates)
        stages = [m for m in reri if m != branch]
        for m in stages:
            found = found - beta / len(stages) * reri[m][name] / sum(reri[m][n].sum() for n in mates)
        scores[name] = found
    return scores


def assert_close(scores: Any, expected: dict[str, Tensor]) -> None:
    assert list(scores) == list(expected)
    for branch in scores.layout.branches:
        names = [n for n in expected if branch_of(n) == branch]
        peak = max(float(expected[n].abs().max()) for n in names)
        assert peak > 0
        for name in names:
            worst = float((scores[name] - expected[name].detach()).abs().max())
            assert worst <= 1e-9 * peak, f"{name}: off by {worst / peak:.1e} of the maximum"


@pytest.mark.parametrize("direct", [False, True], ids=["shared", "direct"])
@pytest.mark.parametrize(("reri_data", "bn"), [("paired", "train"), ("paper", "frozen")])
def test_altermoma_on_real_gates(net: GatedNet, reri_data: str, bn: str, direct: bool) -> None:
    """Both ends of ReRI at m = 1: at theta_init, and at the reactivated theta_B with its own values."""
    scores = score(net, alpha=0.7, beta=1.3, reri_data=reri_data, bn=bn, direct=direct)
    assert_close(scores, alter_eva(net, 0.7, 1.3, reri_data, bn))
    assert scores.metadata["granularity"] == "channel"


def test_deci_and_snip_differ_in_their_normaliser(net: GatedNet) -> None:
    sizes = {n: g.abs() for n, g in gate_gradients(net, BATCHES, None, "train").items()}
    of_branch = {
        b: sum(float(s.sum()) for n, s in sizes.items() if branch_of(n) == b) for b in ("camera", "lidar", "fusion")
    }
    assert_close(score(net, "deci"), {n: s / of_branch[branch_of(n)] for n, s in sizes.items()})
    assert_close(score(net, "snip"), {n: s / sum(of_branch.values()) for n, s in sizes.items()})


def test_magnitude_and_random_look_at_no_batch(net: GatedNet) -> None:
    magnitude = score(net, "magnitude")
    stem, norm = net.backbones["camera"].block, net.backbones["camera"].block_norm
    for at in range(2):  # out of the definition, for the set that has most: rows, columns, two norms
        rest = net.backbones["camera"]
        parts = [
            rest.stem.weight[at],
            rest.stem_norm.weight[at],
            rest.stem_norm.bias[at],
            norm.weight[at],
            norm.bias[at],
        ]
        parts += [stem.weight[at], stem.weight[:at, at], stem.weight[at + 1 :, at], rest.out.weight[:, at]]
        total = sum(float(part.detach().square().sum()) for part in parts)
        assert float(magnitude["backbones.camera.stem"][at]) == pytest.approx(total**0.5, rel=1e-12)
    first, again, other = (score(net, "random", seed=seed).flat for seed in (5, 5, 6))
    assert first.shape == (33,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def fisher(net: nn.Module, masked: str | None) -> dict[str, Tensor]:
    """The squares of single batches' derivatives by gates, over their sum; nothing of the masked branch."""
    found = {name: torch.zeros_like(g) for name, g in gate_gradients(net, BATCHES, masked, "train").items()}
    for batch in BATCHES:
        for name, derivative in gate_gradients(net, [batch], masked, "train").items():
            found[name] += derivative**2 * (branch_of(name) != masked)
    total = sum(float(f.sum()) for f in found.values())
    return {name: f / total for name, f in found.items()}


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("direct", [False, True], ids=["shared", "direct"])
def test_modalfisher_is_the_mean_square_of_single_batches_over_the_masks(
    net: GatedNet, share: float, direct: bool
) -> None:
    now, *masked = (fisher(net, m) for m in (None, "camera", "lidar"))
    scores = score(net, "modalfisher", settings={"share": share}, direct=direct)
    assert_close(scores, {n: (1 - share) * now[n] + share * sum(m[n] for m in masked) / 2 for n in now})
    assert "for_ratio" not in scores.metadata
    assert scores.metadata["rounds"] == 1
    assert scores.mask(0.5, budget="flops").metadata["method"] == "modalfisher"
    with pytest.raises(ScoringError, match="rounds=2; rounds take single weights away, channels are scored once"):
        score(net, "modalfisher", settings={"rounds": 2})


class Loss(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Any) -> Tensor:
        return loss(self.net, batch)


def prospr(net: nn.Module, steps: int, lr: float, *, full: bool) -> dict[str, Tensor]:
    """|dL/dm|: full, the gates multiply the initial parameters; first, they stand in the network at theta_K."""
    work = Loss(mode(copy.deepcopy(net), "train"))
    gates = {n: torch.ones(size, dtype=torch.float64, requires_grad=True) for n, (_, size) in SETS.items()}
    theta = {name: p.detach().clone().requires_grad_() for name, p in work.named_parameters()}
    if full:
        every = torch.cat([*gates.values(), torch.ones(1, dtype=torch.float64)])
        for gate in groups_of(net).gates:
            for name, axis in [(gate.weight, gate.axis)] + ([(gate.bias, 0)] if gate.bias else []):
                like = theta[f"net.{name}"]
                factor = every[gate.groups].view([-1 if d == axis else 1 for d in range(like.dim())])
                theta[f"net.{name}"] = like * factor
    for step in range(steps):
        value = functional_call(work, theta, (BATCHES[step % 3],))
        grads = torch.autograd.grad(value, list(theta.values()), create_graph=full)
        theta = {n: t - lr * g for (n, t), g in zip(theta.items(), grads, strict=True)}
        if not full:
            theta = {n: t.detach().requires_grad_() for n, t in theta.items()}
    if not full:
        for module in (work.net, *work.net.backbones.values()):  # type: ignore[union-attr,operator]
            module.gates = gates
    value = functional_call(work, theta, (BATCHES[steps % 3],))
    found = torch.autograd.grad(value, list(gates.values()))
    return {NAMES[n]: g.abs() for n, g in zip(gates, found, strict=True)}


@pytest.mark.parametrize("order", ["full", "first"])
@pytest.mark.parametrize("steps", [0, 2])
def test_prospr_is_the_derivative_by_a_gate_through_the_steps(net: GatedNet, steps: int, order: str) -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        scores = score(net, "prospr", settings={"steps": steps, "lr": 0.1, "order": order})
        assert_close(scores, prospr(net, steps, 0.1, full=order == "full"))


def test_terms_make_the_score(net: GatedNet) -> None:
    scores = score(net, beta=0.5, keep_terms=True)
    assert torch.allclose(scores.terms["deci"] - 0.5 * scores.terms["reri"], scores.flat, rtol=0, atol=1e-15)


# ---- which criteria, which model ------------------------------------------------------------------------------------


def test_criteria_that_take_single_weights_away_are_refused(net: GatedNet) -> None:
    for method in CRITERIA:
        if method not in ON_CHANNELS:
            with pytest.raises(
                ScoringError, match=rf"'{method}' cannot score channels: .*; take one of altermoma, deci,"
            ):
                score(net, method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ON_CHANNELS)
def test_scoring_leaves_no_trace(method: str, dtype: torch.dtype) -> None:
    net = seeded(GatedNet, dtype=dtype)
    worn(net.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    before = state(net)
    scores = score(net, method, small_batches(3, dtype=dtype))
    assert scores.flat.dtype == torch.float64
    assert bool(torch.isfinite(scores.flat).all())
    assert_same(before, state(net))


def test_norms_that_a_config_froze_are_scored_and_frozen_again(net: GatedNet) -> None:
    expected = score(net).flat
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.requires_grad_(False)
    assert torch.equal(score(net).flat, expected)
    assert not net.fuser[1].weight.requires_grad


def test_groups_are_found_where_none_are_given(net: GatedNet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def find_groups(fusion: Any, batch: Any) -> ChannelGroups:
        asked.append((fusion.model, batch))
        return groups_of(fusion.model)

    monkeypatch.setattr("fastalter.structure.grouping.find.find_groups", find_groups)
    found = score(net, "deci", groups=None)
    assert torch.equal(found.flat, score(net, "deci").flat)
    assert asked == [(net, BATCHES[0])]
    assert "channel groups" in found.metadata["seconds"]
    with pytest.raises(ScoringError, match="batches are empty"):
        fastalter.score_model(net, [], granularity="channel", progress=False)
    with pytest.raises(DataError, match="an iterator can be walked only once"):
        fastalter.score_model(net, iter(BATCHES), granularity="channel", progress=False)


def test_the_counts_of_branches_are_those_of_groups(net: GatedNet) -> None:
    branches = score(net, "deci").metadata["branches"]
    assert [branches[b]["prunable"] for b in ("camera", "lidar", "fusion")] == [10, 13, 10]
    learned = sum(p.numel() for n, p in net.named_parameters() if branch_of(n) == "camera")
    assert branches["camera"]["parameters"] == learned


def test_arguments_that_do_not_go_together_are_refused(net: GatedNet) -> None:
    for granularity in ("layer", None):
        with pytest.raises(ScoringError, match=r"granularity is .*; it takes 'weight' or 'channel'"):
            fastalter.score_model(net, BATCHES, granularity=granularity, progress=False)  # type: ignore[arg-type]
    with pytest.raises(ScoringError, match="groups are given and granularity is 'weight'"):
        fastalter.score_model(net, BATCHES, groups=groups_of(net), progress=False)
    with pytest.raises(ScoringError, match="prunable chooses single weights; for channels pass groups"):
        score(net, prunable=lambda name, parameter, module: True)

    def over_weights(problem: Problem) -> Ranking:
        arena = Arena(problem.weights, problem.fusion.branch_names)
        return Ranking(arena.layout, arena.magnitudes())

    with pytest.raises(
        ScoringError, match=r"'over_weights' ranks something else than the channel groups; use problem.arena"
    ):
        score(net, over_weights)


# ---- scores, masks and files ----------------------------------------------------------------------------------------


def test_the_mask_is_over_channels(net: GatedNet) -> None:
    scores = score(net, "deci")
    mask = scores.mask(0.5, budget="parameters", min_keep=2)
    assert type(mask) is ChannelMask
    assert (mask.metadata["budget"], mask.metadata["min_keep"], mask.metadata["method"]) == ("parameters", 2, "deci")
    assert mask.metadata["reached"]["parameters"] >= 0.5
    assert scores.mask().ratio == 0.8
    assert scores.mask(0.6).metadata["budget"] == "channels"
    assert scores.mask(0.03, round_to=8).metadata["round_to"] == 8
    assert repr(scores) == "Scores(deci: 33 channels; camera 10, lidar 13, fusion 10)"
    with pytest.raises(MaskError, match="n_m is for single weights: score the model with granularity='weight'"):
        scores.mask(n_m=(2, 4))
    weights = fastalter.score_model(net, BATCHES, method="magnitude", progress=False)
    for options in ({"budget": "flops"}, {"round_to": 8}):
        with pytest.raises(
            MaskError, match="budget and round_to are for channels: score the model with granularity='ch"
        ):
            weights.mask(0.5, **options)


def test_files_come_back_equal(net: GatedNet, tmp_path: Path) -> None:
    scores = score(net, keep_terms=True)
    scores.save(tmp_path / "s")
    again = fastalter.Scores.load(tmp_path / "s")
    assert torch.equal(again.flat, scores.flat)
    assert torch.equal(again.terms["reri"], scores.terms["reri"])
    assert again.groups is not None
    assert_same_groups(again.groups, scores.groups)
    assert "groups" not in again.metadata
    assert torch.equal(again.mask(0.5, budget="flops").bits, scores.mask(0.5, budget="flops").bits)
    found, document = read_artifact(tmp_path / "s", "scores")
    del found["groups/gates"]
    write_artifact(tmp_path / "s", document.pop("kind"), found, document)
    with pytest.raises(MaskError, match=r"/s: its channel groups are damaged .*make it again"):
        fastalter.Scores.load(tmp_path / "s")


class Spoiled(torch.autograd.Function):
    """The identity, its gradient NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * float("nan")


def test_a_gradient_that_is_not_finite_names_the_set(net: GatedNet) -> None:
    net.backbones["lidar"].out.register_forward_hook(lambda module, inputs, output: Spoiled.apply(output))
    with pytest.raises(ScoringError, match=r"^backbones.lidar.stem: its gradient with nothing masked is not finite"):
        score(net, "deci")
