"""Batch norm's statistics measured anew, against a loop by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastalter.data import example_batch
from fastalter.data.drop import without
from fastalter.errors import TrainingError
from fastalter.models import build, config_of
from fastalter.training.recalibrate import COUNT, recalibrate


class Two(nn.Module):
    """Two norms in a row, dropout between them, a third norm that no batch reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.first = nn.BatchNorm2d(3, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.first(self.conv(x)).relu()))  # type: ignore[no-any-return]


@pytest.fixture
def model() -> Two:
    torch.manual_seed(0)
    net = Two().double()
    for norm in (net.first, net.second, net.unused):
        for buffer in (norm.running_mean, norm.running_var):
            assert buffer is not None
            buffer.uniform_(1, 2)
        norm.weight.data.uniform_(0.5, 2)
    return net


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 2, 5, 5, generator=generator, dtype=torch.float64) * (i + 1) for i in range(count)]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def by_hand(model: Two, items: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Plain means over the batches of each batch's mean and unbiased variance, every norm on its own batch's."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {"first": [], "second": []}
    for item in items:
        x = torch.einsum("oi,bihw->bohw", model.conv.weight[:, :, 0, 0], item) + model.conv.bias[:, None, None]  # type: ignore[index]
        for name, norm in (("first", model.first), ("second", model.second)):
            rows = x.transpose(0, 1).flatten(1)
            mean = rows.mean(1)
            centred = rows - mean[:, None]
            biased = centred.square().mean(1)
            seen[name].append((mean, centred.square().sum(1) / (rows.shape[1] - 1)))
            scale = norm.weight / (biased + norm.eps).sqrt()
            x = ((x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    return {
        name: (torch.stack([m for m, _ in pairs]).mean(0), torch.stack([v for _, v in pairs]).mean(0))
        for name, pairs in seen.items()
    }


def test_statistics_are_the_plain_means_over_the_batches(model: Two) -> None:
    expected = by_hand(model, batches())
    assert recalibrate(model, batches()) == 3
    for name, (mean, variance) in expected.items():
        norm = getattr(model, name)
        assert torch.allclose(norm.running_mean, mean, rtol=1e-12, atol=1e-14), name
        assert torch.allclose(norm.running_var, variance, rtol=1e-12, atol=1e-14), name


def test_all_else_is_as_it_was(model: Two) -> None:
    model.train()
    model.first.eval()  # a frozen norm stays frozen, with new statistics
    modes = {name: module.training for name, module in model.named_modules()}
    unused, weights = statistics(model.unused), [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    recalibrate(model, batches())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert (model.first.momentum, model.second.momentum) == (0.3, 0.1)
    assert_equal(statistics(model.unused), unused)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_one_part_is_measured_with_the_others_as_they_run(model: Two) -> None:
    first = statistics(model.first)
    model.eval()
    inputs = [model.first(model.conv(item)).relu() for item in batches()]
    recalibrate(model, batches(), part=model.second)
    assert_equal(statistics(model.first), first)
    expected = torch.stack([x.transpose(0, 1).flatten(1).mean(1) for x in inputs]).mean(0)
    assert torch.allclose(model.second.running_mean, expected, rtol=1e-12)  # type: ignore[arg-type]


def test_batches_come_from_a_list_an_iterator_or_a_function(model: Two) -> None:
    asked: list[int] = []

    def make(step: int) -> Tensor:
        asked.append(step)
        return batches()[step % 3]

    recalibrate(model, batches(), count=2)
    listed = statistics(model)
    recalibrate(model, make, count=2)
    assert asked == [0, 1]
    assert_equal(statistics(model), listed)
    recalibrate(model, iter(batches(2)))
    assert_equal(statistics(model), listed)
    assert recalibrate(model, make) == COUNT


def test_an_error_leaves_the_statistics_as_they_were(model: Two) -> None:
    before = statistics(model)

    def failing() -> Iterator[Tensor]:
        yield batches()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, failing())
    assert_equal(statistics(model), before)
    with pytest.raises(TrainingError, match=r"first: its measured mean is not finite"):
        recalibrate(model, [batches()[0] * float("nan")])
    assert_equal(statistics(model), before)
    with pytest.raises(TrainingError, match="no batch to measure"):
        recalibrate(model, [])
    with pytest.raises(TrainingError, match="count is 0"):
        recalibrate(model, batches(), count=0)
    assert_equal(statistics(model), before)
    assert model.first.momentum == 0.3


def test_norms_of_an_empty_scan_keep_their_statistics() -> None:
    config = config_of("bevfusion-tiny")
    fusion = build(config, seed=1)
    batch = example_batch(config, batch_size=1, seed=2)
    before = statistics(fusion)
    recalibrate(fusion, [without(batch, "lidar")])
    after = statistics(fusion)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith("encoders.lidar.")]
    assert [name for name in moved if name.startswith("encoders.camera.")]
    recalibrate(fusion, [batch])
    assert [name for name, v in statistics(fusion).items() if "encoders.lidar" in name and not v.equal(before[name])]
