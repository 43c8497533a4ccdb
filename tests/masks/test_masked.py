"""`with masked(model, mask)`: the masked model's output inside, the very same weights afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastalter
from fastalter.errors import MaskError
from fastalter.masks import context
from tests.masks.nets import NAMES, net_and_mask, zeroed_copy


@pytest.fixture(params=["in place", "on load"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both roads on the CPU: where no kernel serves, the layers' ops are the reference's."""
    if request.param == "on load":
        monkeypatch.setattr(context, "masks_on_load", lambda layer, _: context.is_plain_layer(layer))
    return str(request.param)


def test_the_output_is_that_of_zeroed_weights(road: str) -> None:
    net, mask, x = net_and_mask()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = zeroed_copy(net, mask)(x)
    assert not torch.allclose(net(x), expected)
    with fastalter.masked(net, mask) as inside:
        assert inside is net
        assert torch.allclose(net(x), expected, atol=1e-6)
        touched = not torch.equal(net.linear.weight, before["linear.weight"])
        assert touched == (road == "in place")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(net(x), copy.deepcopy(net)(x))


def test_gradients_are_those_of_mu_theta(road: str) -> None:
    net, mask, x = net_and_mask()
    with fastalter.masked(net, mask):
        net(x).square().sum().backward()
    other = zeroed_copy(net, mask)
    other.zero_grad()
    other(x).square().sum().backward()
    for name, parameter in other.named_parameters():
        found = net.get_parameter(name).grad
        assert found is not None
        assert parameter.grad is not None
        kept = mask[name] if name in NAMES else torch.ones_like(parameter, dtype=torch.bool)
        torch.testing.assert_close(found[kept], parameter.grad[kept], rtol=1e-4, atol=1e-4)


def test_the_weights_come_back_after_an_exception_and_after_a_change(road: str) -> None:
    net, mask, _ = net_and_mask()
    before = net.grouped.weight.detach().clone()

    def fail() -> None:
        with fastalter.masked(net, mask):
            net.grouped.weight.data.fill_(7.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(net.grouped.weight, before)
    assert "forward" not in net.plain.__dict__


def test_autocast_and_single_images(road: str) -> None:
    net, mask, x = net_and_mask()
    other = zeroed_copy(net, mask)
    with fastalter.masked(net, mask), torch.autocast("cpu", torch.bfloat16):
        assert net.plain(x).dtype == torch.bfloat16
        torch.testing.assert_close(net.plain(x[0]), other.plain(x[0]), rtol=2e-2, atol=2e-2)


def test_masks_of_everything_and_of_nothing() -> None:
    net, mask, x = net_and_mask(0.0)
    with fastalter.masked(net, mask):
        assert torch.equal(net(x), zeroed_copy(net, mask)(x))


def test_a_cpu_model_is_zeroed_in_place() -> None:
    assert not context.masks_on_load(nn.Linear(3, 4), torch.zeros(4, 3))


def test_a_mask_of_another_model_is_refused() -> None:
    net, mask, _ = net_and_mask()
    net.linear = nn.Linear(8, 6)
    with pytest.raises(MaskError, match=r"linear\.weight: its shape is \(5, 8\) in the mask and \(6, 8\) in the model"):
        fastalter.masked(net, mask).__enter__()
    del net.linear
    with pytest.raises(MaskError, match=r"linear\.weight: the mask covers this weight and the model has none"):
        fastalter.masked(net, mask).__enter__()
