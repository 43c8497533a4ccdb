"""Every criterion against a small oracle in plain torch, in float64, to 1e-9 of the maximum."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from fastalter.errors import ScoringError
from fastalter.fusion import adapt, find_weights
from tests.altermoma.oracle import gradients, mode
from tests.criteria.cases import Case, assert_close, highest


def sensitivities(case: Case, bn: str = "train") -> dict[str, Tensor]:
    grads = gradients(case.net, case.loss, case.batches, [], bn)
    return {name: (p * grads[name]).abs().detach() for name, p in case.prunable(case.net).items()}


@pytest.mark.parametrize("bn", ["train", "frozen"])
@pytest.mark.parametrize("name", ["small", "user"])
def test_snip_is_the_sensitivity_over_its_global_sum(name: str, bn: str) -> None:
    case = Case(name)
    expected = sensitivities(case, bn)
    total = sum(float(e.sum()) for e in expected.values())
    scores = case.score("snip", bn=bn)
    assert_close(scores, {n: e / total for n, e in expected.items()})
    assert float(scores.flat.sum()) == pytest.approx(1, abs=1e-12)
    assert scores.metadata["sum"] == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("name", ["small", "user"])
def test_deci_is_the_sensitivity_over_its_branch_sum(name: str) -> None:
    case = Case(name)
    found, branch_of = sensitivities(case), case.branch_of()
    sums = {b: sum(float(e.sum()) for n, e in found.items() if branch_of[n] == b) for b in set(branch_of.values())}
    scores = case.score("deci")
    assert_close(scores, {n: e / sums[branch_of[n]] for n, e in found.items()})
    assert len(sums) == 3


@pytest.mark.parametrize("name", ["small", "user"])
def test_altermoma_with_beta_zero_is_deci_and_ranks_inside_a_branch_as_snip(name: str) -> None:
    case = Case(name)
    altermoma, deci, snip = (case.score(m, beta=0.0) for m in ("altermoma", "deci", "snip"))
    for branch in snip.layout.branches:
        ours = altermoma.branch(branch)
        assert float((ours - deci.branch(branch)).abs().max()) <= 1e-9 * float(ours.max())
        assert bool((ours[snip.branch(branch).argsort()].diff() >= -1e-9 * ours.max()).all())
        assert snip.branch(branch).unique().numel() > 0.9 * ours.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_magnitude_is_the_absolute_weight(dtype: torch.dtype) -> None:
    case = Case("user", dtype)
    scores = case.score("magnitude")
    assert all(torch.equal(scores[n], p.detach().abs()) for n, p in case.prunable(case.net).items())


def test_random_is_uniform_and_the_same_bits_for_a_seed() -> None:
    case = Case("small")
    first, again, other = (case.score("random", seed=seed).flat for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool(((first >= 0) & (first < 1)).all())
    assert float(first.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / first.numel()) ** 0.5)  # four standard errors


# ---- SynFlow --------------------------------------------------------------------------------------------------------


def synflow_oracle(case: Case, ratio: float, iterations: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The last iteration's scores for one sample of ones, and which weights stay."""
    net = copy.deepcopy(case.net).double().eval()
    with torch.no_grad():
        for value in net.state_dict().values():
            value.abs_()
    ones = [t[:1] for t in case.batches[0].values()] if isinstance(case.batches[0], dict) else case.batches[0]
    ones = [torch.ones_like(t[:1], dtype=torch.float64) if t.is_floating_point() else t[:1] for t in ones]
    batch = dict(zip(case.batches[0], ones, strict=True)) if isinstance(case.batches[0], dict) else ones
    weights = case.prunable(net)
    full = {name: p.detach().clone() for name, p in weights.items()}
    alive = {name: torch.ones_like(p, dtype=torch.bool) for name, p in weights.items()}
    size = sum(p.numel() for p in weights.values())
    score: dict[str, Tensor] = {}
    for iteration in range(iterations):
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(full[name] * alive[name])
        flow = torch.autograd.grad(case.forward(net, batch).sum(), list(weights.values()))
        score = {name: (g * p).abs().detach() for g, (name, p) in zip(flow, weights.items(), strict=True)}
        alive_before = alive
        alive = highest(score, alive, round(size * (1 - ratio) ** ((iteration + 1) / iterations)))
    return {name: s * alive_before[name] for name, s in score.items()}, alive


@pytest.mark.parametrize("iterations", [1, 7])
@pytest.mark.parametrize("name", ["small", "user"])
def test_synflow_against_a_loop(name: str, iterations: int) -> None:
    case = Case(name)
    settings = {"iterations": iterations} | ({} if name == "small" else {"forward": case.forward})
    scores = case.score("synflow", settings=settings, ratio=0.8)
    expected, alive = synflow_oracle(case, 0.8, iterations)
    samples = 3 if name == "small" else 2  # R sums over the batch's samples, all alike
    assert_close(scores_of_the_living(scores), {n: samples * e for n, e in expected.items()})
    mask = scores.mask(0.8)
    assert all(torch.equal(mask[n], kept) for n, kept in alive.items())


def scores_of_the_living(scores: Any) -> Any:
    clipped = copy.copy(scores)
    clipped.flat = scores.flat.clamp(min=0)
    return clipped


def test_synflow_of_float32_weights_runs_in_float64() -> None:
    single, double = Case("small", torch.float32), Case("small", torch.float32)
    double.net.double()
    double.batches = [
        {k: t.double() if t.is_floating_point() else t for k, t in batch.items()} for batch in double.batches
    ]
    one, two = (case.score("synflow", settings={"iterations": 3}, ratio=0.9) for case in (single, double))
    assert one.flat.dtype == torch.float64
    assert torch.equal(one.flat, two.flat)


def test_synflow_ignores_what_the_data_say() -> None:
    case = Case("small")
    one, other = (case.score("synflow", b, settings={"iterations": 2}) for b in (case.batches[:1], case.batches[1:]))
    assert torch.equal(one.flat, other.flat)


def test_synflow_says_when_float64_is_not_enough() -> None:
    case = Case("small")
    with torch.no_grad():
        case.net.fuser[0].weight.mul_(1e200)
        case.net.head.weight.mul_(1e200)
    with pytest.raises(ScoringError, match="overflows float64"):
        case.score("synflow", settings={"iterations": 2})


def test_synflow_wants_a_forward_that_it_can_call() -> None:
    case = Case("user")
    with pytest.raises(ScoringError, match=r"UserNet.forward does not take a batch alone.*set forward=function"):
        case.score("synflow")
    with pytest.raises(ScoringError, match=r"forward is 'run'; set forward=function"):
        case.score("synflow", settings={"forward": "run"})
    with pytest.raises(ScoringError, match="returns nothing that depends on its weights"):
        case.score("synflow", settings={"forward": lambda model, batch: batch})
    case = Case("small")
    with pytest.raises(ScoringError, match=r"SmallFusion.forward\(batch\) failed.*set forward=function"):
        case.score("synflow", [list(batch.values()) for batch in case.batches])


# ---- ProsPr ---------------------------------------------------------------------------------------------------------


class Loss(nn.Module):
    def __init__(self, case: Case, net: nn.Module) -> None:
        super().__init__()
        self.net, self.case = net, case

    def forward(self, batch: Any) -> Tensor:
        return self.case.loss(self.net, batch)


def prospr_oracle(case: Case, steps: int, lr: float, *, full: bool) -> dict[str, Tensor]:
    """|dL/dmask| with masks made for real."""
    loss = Loss(case, mode(copy.deepcopy(case.net), "train"))
    prunable = case.prunable(loss.net)
    masks = {name: torch.ones_like(p, requires_grad=True) for name, p in prunable.items()}
    theta = {
        f"net.{name}": p * masks[name] if name in masks else p.clone()
        for name, p in loss.net.named_parameters()
        if p.requires_grad
    }
    for step in range(steps):
        value = functional_call(loss, theta, (case.batches[step % len(case.batches)],))
        grads = torch.autograd.grad(value, list(theta.values()), create_graph=full)
        theta = {n: t - lr * g for (n, t), g in zip(theta.items(), grads, strict=True)}
    value = functional_call(loss, theta, (case.batches[steps % len(case.batches)],))
    return dict(zip(masks, (g.abs() for g in torch.autograd.grad(value, list(masks.values()))), strict=True))


@pytest.fixture(autouse=True)
def _plain_attention() -> Any:
    """The oracle's second derivatives need attention in its plain form."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


@pytest.mark.parametrize("order", ["full", "first"])
@pytest.mark.parametrize("steps", [0, 1, 3, 4])
@pytest.mark.parametrize("name", ["small", "user"])
def test_prospr_is_the_gradient_by_a_mask_through_the_steps(name: str, steps: int, order: str) -> None:
    case = Case(name)
    scores = case.score("prospr", settings={"steps": steps, "lr": 0.1, "order": order})
    assert_close(scores, prospr_oracle(case, steps, 0.1, full=order == "full"))
    assert scores.metadata["order"] == order


def test_prospr_without_steps_is_snip_on_the_first_batch() -> None:
    case = Case("small")
    prospr = case.score("prospr", settings={"steps": 0})
    snip = case.score("snip", case.batches[:1])
    assert torch.allclose(prospr.flat / prospr.flat.sum(), snip.flat, rtol=0, atol=1e-12)


def test_full_prospr_is_what_a_small_change_of_the_mask_does() -> None:
    """Finite differences of the mask, the steps taken by torch's own SGD."""
    case, lr, eps = Case("user"), 0.05, 1e-5
    scores = case.score("prospr", settings={"lr": lr, "order": "full"})

    def after(name: str, index: int, change: float) -> float:
        net = mode(copy.deepcopy(case.net), "train")
        with torch.no_grad():
            case.prunable(net)[name].reshape(-1)[index] *= 1 + change
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr)
        for batch in case.batches:
            optimizer.zero_grad()
            case.loss(net, batch).backward()
            optimizer.step()
        return float(case.loss(net, case.batches[0]).detach())

    for name in scores:
        index = int(scores[name].reshape(-1).argmax())
        slope = abs(after(name, index, eps) - after(name, index, -eps)) / (2 * eps)
        assert slope == pytest.approx(float(scores[name].reshape(-1)[index]), rel=1e-4, abs=1e-9), name


def test_the_two_orders_differ_by_the_hessian_terms() -> None:
    case = Case("small")
    full, first = (case.score("prospr", settings={"order": order}).flat for order in ("full", "first"))
    assert float((full - first).abs().max()) > 0.01 * float(full.max())


class Once(torch.autograd.Function):
    """The identity, differentiable once: as sparse convolutions are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()


def once_only(case: Case) -> Case:
    body = case.net.backbones["lidar"].body
    body[2] = nn.Sequential(body[2], OnceModule())
    return case


class OnceModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)  # type: ignore[no-any-return]


def test_auto_takes_the_full_form_where_the_network_allows_it() -> None:
    for name in ("small", "user"):
        case = Case(name)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            auto = case.score("prospr")
        assert auto.metadata["order"] == "full"
        assert torch.equal(auto.flat, case.score("prospr", settings={"order": "full"}).flat)
    case = once_only(Case("small"))
    auto = case.score("prospr")
    assert auto.metadata["order"] == "first"
    assert torch.equal(auto.flat, case.score("prospr", settings={"order": "first"}).flat)
    with pytest.raises(ScoringError, match=r"order='full', but .*differentiate twice.*; use order='first'"):
        case.score("prospr", settings={"order": "full"})


# ---- IMP ------------------------------------------------------------------------------------------------------------


def imp_oracle(case: Case, ratio: float, rounds: int, steps: int, lr: float) -> tuple[dict[str, Tensor], ...]:
    """|theta| after the last training of what was left then, and which weights stay."""
    alive = {name: torch.ones_like(p, dtype=torch.bool) for name, p in case.prunable(case.net).items()}
    size = sum(a.numel() for a in alive.values())
    for r in range(1, rounds + 1):
        net = mode(copy.deepcopy(case.net), "train")
        train_held(case, net, alive, steps, lr)
        score = {name: p.detach().abs() * alive[name] for name, p in case.prunable(net).items()}
        alive = highest(score, alive, round(size * (1 - ratio) ** (r / rounds)))
    return score, alive


def train_held(case: Case, net: nn.Module, alive: dict[str, Tensor], steps: int, lr: float) -> None:
    """AdamW as the trainer makes it, on what is alive."""
    weights, learned = case.prunable(net), [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.99),
    )
    for step in range(steps):
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.mul_(alive[name])
        optimizer.zero_grad()
        case.loss(net, case.batches[step % len(case.batches)]).backward()
        for name, parameter in weights.items():
            parameter.grad *= alive[name]  # type: ignore[operator]
        optimizer.step()


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("name", ["small", "user"])
def test_imp_against_a_loop(name: str, rounds: int) -> None:
    case = Case(name)
    scores = case.score("imp", settings={"rounds": rounds, "steps": 5, "lr": 0.02}, ratio=0.7)
    expected, alive = imp_oracle(case, 0.7, rounds, steps=5, lr=0.02)
    assert_close(scores_of_the_living(scores), expected)
    mask = scores.mask(0.7)
    assert all(torch.equal(mask[n], kept) for n, kept in alive.items())
    assert scores.metadata["settings"] == {"bn": "train", "rounds": rounds, "steps": 5, "lr": 0.02}


def test_imp_is_not_magnitude() -> None:
    case = Case("small")
    trained = case.score("imp", settings={"rounds": 2, "steps": 5, "lr": 0.05}, ratio=0.7).mask(0.7)
    plain = case.score("magnitude").mask(0.7)
    assert any(not torch.equal(trained[n], plain[n]) for n in plain)


def test_a_training_that_diverges_is_said_with_its_round() -> None:
    with pytest.raises(ScoringError, match=r"imp, round 1, step \d+: batch .* or lower lr"):
        Case("small").score("imp", settings={"lr": 1e200})
    with pytest.raises(ScoringError, match=r"prospr, after \d inner steps: batch .* or lower lr"):
        Case("small").score("prospr", settings={"lr": 1e200, "order": "first"})
    with pytest.raises(ScoringError, match=r"modalfisher, round 2, step \d+: batch .* or lower lr"):
        Case("small").score("modalfisher", settings={"lr": 1e200})


# ---- modalfisher ----------------------------------------------------------------------------------------------------


def fisher(case: Case, net: nn.Module, alive: dict[str, Tensor], masked: str | None) -> dict[str, Tensor]:
    """theta^2 sum_b g_b^2 of what is alive with one branch's parameters at zero, over its sum."""
    branches = {w.name: w.branch for w in find_weights(adapt(net, **case.arguments))}
    gone = [name for name, branch in branches.items() if branch == masked]
    found = {name: torch.zeros_like(p) for name, p in case.prunable(net).items()}
    for batch in case.batches:
        grads = gradients(net, case.loss, [batch], gone, "train")
        for name, p in case.prunable(net).items():
            if name not in gone:
                found[name] += (p * grads[name] * alive[name]).detach() ** 2
    total = sum(float(f.sum()) for f in found.values())
    return {name: f / total for name, f in found.items()}


def modalfisher_oracle(
    case: Case, ratio: float, rounds: int, share: float, steps: int, lr: float
) -> tuple[dict[str, Tensor], ...]:
    """The last round's scores, and which weights stay."""
    net = mode(copy.deepcopy(case.net), "train")
    alive = {name: torch.ones_like(p, dtype=torch.bool) for name, p in case.prunable(net).items()}
    size = sum(a.numel() for a in alive.values())
    for r in range(1, rounds + 1):
        now, *masked = (fisher(case, net, alive, m) for m in (None, "camera", "lidar"))
        score = {n: (1 - share) * now[n] + share * sum(m[n] for m in masked) / 2 for n in now}
        alive = highest(score, alive, round(size * (1 - ratio) ** (r / rounds)))
        with torch.no_grad():
            for name, parameter in case.prunable(net).items():
                parameter.mul_(alive[name])
        train_held(case, net, alive, steps if r < rounds else 0, lr)
    return score, alive


@pytest.mark.parametrize(("rounds", "share", "steps"), [(1, 0.2, 5), (3, 0.2, 5), (3, 0.0, 2), (2, 1.0, 0)])
@pytest.mark.parametrize("name", ["small", "user"])
def test_modalfisher_against_a_loop(name: str, rounds: int, share: float, steps: int) -> None:
    case = Case(name)
    settings = {"rounds": rounds, "share": share, "steps": steps, "lr": 0.02}
    expected, alive = modalfisher_oracle(case, 0.7, **settings)
    for direct in (False, True):
        scores = case.score("modalfisher", settings=settings, ratio=0.7, direct=direct)
        assert_close(scores_of_the_living(scores), {n: e * (e > 0) for n, e in expected.items()})
        mask = scores.mask(0.7)
        assert all(torch.equal(mask[n], kept) for n, kept in alive.items())


def test_a_square_that_overflows_is_said_with_weight_round_and_state() -> None:
    case = Case("small", torch.float32)
    loss = case.net.loss
    case.net.loss = lambda batch: {name: 1e25 * value for name, value in loss(batch).items()}
    with pytest.raises(
        ScoringError, match=r"modalfisher, round 1: .*weight: the square .* nothing masked is not finite"
    ):
        case.score("modalfisher")
