"""The fuser's convolution, norm and ReLU for every mask at once, against the modules run mask by mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastalter
from fastalter.errors import ScoringError
from fastalter.fusion.fuse_block import BrokenBlock, FuseBlock, Relay, batch_norm_row, block_at
from tests.altermoma.nets import SmallFusion, seeded, small_batches

WIDTHS = (3, 5)


def made(*, bias: bool = False, relu: bool = True, affine: bool = True, stride: int = 1, track: bool = True) -> Any:
    """A block of the kind, float64, its norm's parameters and running statistics not at their defaults."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, affine=affine, track_running_stats=track)
    model = nn.Sequential(nn.Conv2d(sum(WIDTHS), 6, 3, stride, 1, bias=bias), norm, *([nn.ReLU()] if relu else []))
    for tensor in (*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())):
        tensor.data.uniform_(0.5, 2.0)
    return model.double()


def features() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, width, 7, 6, dtype=torch.float64, requires_grad=True) for width in WIDTHS]


def expected(model: Any, first: Tensor, second: Tensor) -> list[Tensor]:
    """The modules on the concatenation, the masked feature zeroed."""
    pairs = ((first, second), (first, 0 * second), (0 * first, second))
    return [model(torch.cat(pair, 1)) for pair in pairs]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "no ReLU": {"relu": False},
    "not affine": {"affine": False},
    "stride": {"stride": 2},
    "no running statistics": {"track": False},
}


def gradients(output: Tensor, model: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Of an uneven function of the output, so that no gradient is zero by symmetry."""
    weights = torch.linspace(0.1, 1.0, output.numel(), dtype=output.dtype).view_as(output)
    wanted = [*inputs, *model.parameters()]
    found = torch.autograd.grad((output * weights).sum(), wanted, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_state_and_its_gradients_are_the_modules(kind: str, training: bool) -> None:
    model = made(**KINDS[kind]).train(training)
    block = block_at(model, "0")
    assert block is not None
    inputs = features()
    for ours, theirs in zip(block.every_state(*inputs), expected(model, *inputs), strict=True):
        assert float(theirs.detach().abs().max()) > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        for g, h in zip(gradients(ours, model, inputs), gradients(theirs, model, inputs), strict=True):
            torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_state_is_bitwise_what_every_state_has(dtype: torch.dtype) -> None:
    """ReRI of a reactivation that changes nothing is exactly zero only if both ways round alike."""
    model = made(bias=True).to(dtype)
    block = block_at(model, "0")
    assert block is not None
    first, second = (f.detach().to(dtype).requires_grad_() for f in features())
    _, only_first, only_second = block.every_state(first, second)
    for inside, feature, ours in ((slice(0, 3), first, only_first), (slice(3, 8), second, only_second)):
        alone = block.one_state(feature, inside)
        assert torch.equal(alone, ours)
        for g, h in zip(gradients(alone, model, [feature]), gradients(ours, model, [feature]), strict=True):
            assert torch.equal(g, h)


def test_a_variance_that_rounding_takes_below_zero_counts_as_zero() -> None:
    norm = nn.BatchNorm2d(1).double()
    large = torch.tensor([3e7], dtype=torch.float64)
    below = torch.nextafter(large * large, torch.zeros(1, dtype=torch.float64))  # sum P^2 of one place, one ulp short
    scale, _ = batch_norm_row(norm, large, below, 1)
    assert float(scale) == pytest.approx(norm.eps**-0.5)


class Calls(TorchDispatchMode):
    """Counts the convolution products of the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if "grad" in name:
            self.seen.append(name.split("::")[-1])
        return func(*args, **(kwargs or {}))


def test_a_masked_branch_costs_the_backward_pass_nothing() -> None:
    model = made()
    block = block_at(model, "0")
    assert block is not None
    inputs = features()
    both, only_first, _ = block.every_state(*inputs)
    counts = []
    for output in (both, only_first):
        with Calls() as calls:
            torch.autograd.grad(output.sum(), inputs, retain_graph=True, allow_unused=True)
        counts.append([calls.seen.count(f"masked_conv2d_{part}") for part in ("dgrad", "wgrad")])
    assert counts == [[2, 2], [1, 1]]


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Conv2d(8, 6, 3), nn.ReLU()],
        [nn.Conv2d(8, 6, 3), nn.GroupNorm(2, 6), nn.ReLU()],
        [nn.Conv2d(8, 6, 3, groups=2), nn.BatchNorm2d(6)],
        [nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)],
        [nn.Conv2d(8, 6, 3, padding="same"), nn.BatchNorm2d(6)],
        [nn.Conv2d(8, 6, 3), nn.SyncBatchNorm(6)],
    ],
    ids=["no norm", "group norm", "groups", "reflect", "same", "sync"],
)
def test_other_modules_are_no_block(modules: list[nn.Module]) -> None:
    assert block_at(nn.Sequential(*modules), "0") is None


@pytest.mark.parametrize("which", [0, 1])
def test_a_hooked_module_is_no_block(which: int) -> None:
    model = made()
    model[which].register_forward_hook(lambda *_: None)
    assert block_at(model, "0") is None


def test_a_hooked_relu_stays_outside_the_block() -> None:
    model = made()
    model[2].register_forward_hook(lambda *_: None)
    block = block_at(model, "0")
    assert block is not None
    assert not block.relu


def test_a_relay_notices_other_wiring() -> None:
    relay = Relay(2)
    output = relay.start(torch.zeros(1))
    with pytest.raises(BrokenBlock):
        relay.pass_on(output + 1)
    with pytest.raises(BrokenBlock):
        relay.check()


class Rewired(nn.Sequential):
    """A fuser whose forward is not its modules in order."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, relu = self
        y = conv(x)
        return relu(norm(y + y.mean()))  # type: ignore[no-any-return]


def test_a_fuser_wired_otherwise_is_scored_as_it_is() -> None:
    net = seeded(SmallFusion)
    net.fuser = Rewired(*net.fuser)
    run: dict[str, Any] = {"reactivation": fastalter.Reactivation(2, 0.05), "progress": False}
    shared, direct = (fastalter.score_model(net, small_batches(3), direct=flag, **run) for flag in (False, True))
    assert torch.allclose(shared.flat, direct.flat, rtol=0, atol=1e-9 * float(direct.flat.abs().max()))


class Moody(nn.Sequential):
    """Skips its norm where the first feature is zero."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, relu = self
        y = conv(x)
        return relu(y if bool((x[:, :4] == 0).all()) else norm(y))  # type: ignore[no-any-return]


def test_a_fuser_that_runs_otherwise_while_masked_is_refused() -> None:
    net = seeded(SmallFusion)
    net.fuser = Moody(*net.fuser)
    with pytest.raises(ScoringError, match=r"fuser\.0: with camera masked, the modules behind"):
        fastalter.score_model(net, small_batches(3), reactivation=fastalter.Reactivation(2), progress=False)


def test_autocast_is_left_to_the_modules() -> None:
    model = made().float()
    block = block_at(model, "0")
    assert isinstance(block, FuseBlock)
    x = torch.randn(1, 8, 4, 4)
    assert block.fits(x)
    assert not block.fits(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not block.fits(x)
