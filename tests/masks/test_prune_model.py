"""`prune_model`: zeros that are there now, and after anything that trains, loads, averages, copies or saves."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.optim import SGD, Adam, AdamW, optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastalter
from fastalter import Mask
from fastalter.altermoma import Layout
from fastalter.data import load
from fastalter.errors import MaskError
from fastalter.fusion import FusionModel, adapt, find_weights
from fastalter.masks import hold, select
from fastalter.models import build
from fastalter.training import Trainer, TrainOptions
from tests.masks.nets import NAMES, Net, mask_of, net_and_mask, zeroed_copy

Step = Callable[[nn.Module], Any]
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], bool], optimizer.Optimizer]] = {
    "SGD": lambda p, foreach: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=foreach),
    "Adam": lambda p, foreach: Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True, foreach=foreach),
    "AdamW": lambda p, foreach: AdamW(p, lr=0.1, weight_decay=0.1, foreach=foreach),
    "RMSprop": lambda p, foreach: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=foreach),
    "Adagrad": lambda p, foreach: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, foreach=foreach),
    "NAdam": lambda p, foreach: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1, foreach=foreach),
}
FUSED: dict[str, Callable[[list[nn.Parameter]], optimizer.Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "Adam": lambda p: Adam(p, lr=0.1, weight_decay=0.1, fused=True),
    "AdamW": lambda p: AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, fused=True),
}


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """After every test, its models dropped, no hook follows the optimizers of the process."""
    _collect()
    before = dict(optimizer._global_optimizer_post_hooks)
    yield
    _collect()
    assert dict(optimizer._global_optimizer_post_hooks) == before
    assert not hold._held


def _collect() -> None:
    if hold._held:  # a model in a cycle of its own, as torch.compile makes one
        gc.collect()


def zeros_of(model: nn.Module, mask: Mask, prefix: str = "") -> None:
    """Every pruned weight is exactly +0.0, and some kept one of each layer is not zero."""
    for name in mask:
        weight = model.get_parameter(prefix + name).detach()
        pruned = weight[~mask[name]]
        assert not pruned.any(), name
        assert not torch.signbit(pruned).any(), name
        assert weight[mask[name]].any() or not mask[name].any(), name


def backward(model: nn.Module, x: Tensor) -> Tensor:
    loss: Tensor = model(x).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


# ---- training -------------------------------------------------------------------------------------------------------


def trained_by_hand(net: Net, mask: Mask, x: Tensor, make: Step, steps: int = 4) -> Net:
    """The oracle: the same training with gradients and weights multiplied by the mask in plain sight."""
    other = zeroed_copy(net, mask)
    opt = make(other)
    for _ in range(steps):
        opt.zero_grad()
        backward(other, x)
        for name in mask:
            gradient = other.get_parameter(name).grad
            assert gradient is not None
            gradient.mul_(mask[name])
        opt.step()
        for name in mask:
            other.get_parameter(name).data.mul_(mask[name])
    return other


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_leaves_the_zeros_and_trains_the_rest_as_by_hand(name: str, foreach: bool) -> None:
    trains_as_by_hand(lambda model: OPTIMIZERS[name](list(model.parameters()), foreach))


@pytest.mark.parametrize("name", FUSED)
def test_fused_optimizers_too(name: str) -> None:
    trains_as_by_hand(lambda model: FUSED[name](list(model.parameters())))


def trains_as_by_hand(make: Callable[[nn.Module], optimizer.Optimizer]) -> None:
    net, mask, x = net_and_mask()
    expected = trained_by_hand(net, mask, x, make)
    fastalter.prune_model(net, mask)
    opt = make(net)
    for _ in range(4):
        opt.zero_grad()
        backward(net, x)
        opt.step()
        zeros_of(net, mask)
    same_weights(net, expected)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    foreach=st.booleans(),
    ratio=st.floats(0, 0.999),
    seed=st.integers(0, 99),
    before=st.integers(0, 2),
    grad=st.floats(-1e30, 1e30),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_optimizer_any_gradient_any_moment_of_pruning(
    name: str, foreach: bool, ratio: float, seed: int, before: int, grad: float, dtype: torch.dtype
) -> None:
    """Moments from before pruning and gradients that no backward made do not bring a weight back."""
    net, mask, x = net_and_mask(ratio, seed)
    net, x = net.to(dtype), x.to(dtype)
    opt = OPTIMIZERS[name](list(net.parameters()), foreach)
    for _ in range(before):
        backward(net, x)
        opt.step()
    fastalter.prune_model(net, mask)
    for step in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, grad * (step + 1))
        opt.step()
        for weight in mask:
            assert not net.get_parameter(weight)[~mask[weight]].any()


def test_a_closure_may_run_as_often_as_it_likes() -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    opt = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=6, line_search_fn="strong_wolfe")
    losses: list[float] = []

    def closure() -> Tensor:
        opt.zero_grad()
        zeros_of(net, mask)  # inside the step as well: no gradient, no direction
        loss = backward(net, x)
        losses.append(loss.item())
        return loss

    for _ in range(3):
        opt.step(closure)  # type: ignore[arg-type]
        zeros_of(net, mask)
    assert len(losses) > 6
    assert losses[-1] < losses[0]


def test_parameter_groups_and_several_optimizers() -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    first = SGD([{"params": [net.plain.weight]}, {"params": net.grouped.parameters(), "lr": 0.3}], lr=0.1, momentum=0.9)
    rest = [p for name, p in net.named_parameters() if not name.startswith(("plain.weight", "grouped"))]
    second = Adam(rest, lr=0.1)
    for _ in range(3):
        backward(net, x)
        first.step()
        second.step()
    zeros_of(net, mask)


def test_only_weights_of_the_stepping_optimizer_are_touched() -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    with torch.no_grad():
        net.plain.weight.fill_(1.0)
        net.linear.weight.fill_(1.0)
    opt = SGD(net.linear.parameters(), lr=0.1)
    backward(net, x)
    opt.step()
    assert not net.linear.weight[~mask["linear.weight"]].any()
    assert net.plain.weight.eq(1.0).all()


def test_a_grad_scaler_sees_the_sparse_network() -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    opt, scaler = SGD(net.parameters(), lr=0.1, momentum=0.9), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(3):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(x).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        zeros_of(net, mask)


def test_norms_and_moments_are_those_of_the_sparse_network() -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    opt = Adam(net.parameters(), lr=0.01)
    backward(net, x)
    backward(net, x)  # gradients that add up
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
    kept = []
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        kept.append(parameter.grad[mask[name]] if name in NAMES else parameter.grad.flatten())
        if name in NAMES:
            assert not parameter.grad[~mask[name]].any()
            assert parameter.grad[mask[name]].any()
    torch.testing.assert_close(norm, torch.cat(kept).norm())
    opt.step()
    for name in NAMES:
        state = opt.state[net.get_parameter(name)]
        assert not state["exp_avg"][~mask[name]].any()
        assert not state["exp_avg_sq"][~mask[name]].any()


def test_a_gradient_that_is_there_is_masked_at_once() -> None:
    net, mask, x = net_and_mask()
    backward(net, x)
    fastalter.prune_model(net, mask)
    for name in NAMES:
        gradient = net.get_parameter(name).grad
        assert gradient is not None
        assert not gradient[~mask[name]].any()
        assert gradient[mask[name]].any()


def test_infinite_and_missing_numbers_are_zero_where_pruned() -> None:
    net, mask, _ = net_and_mask()
    with torch.no_grad():
        net.linear.weight.view(-1)[::2] = float("nan")
        net.linear.weight.view(-1)[1::2] = float("-inf")
    fastalter.prune_model(net, mask)
    assert net.linear.weight[~mask["linear.weight"]].eq(0).all()
    assert not net.linear.weight[mask["linear.weight"]].isfinite().any()


def test_a_frozen_weight_that_thaws_gets_no_gradient_where_pruned() -> None:
    net, mask, x = net_and_mask()
    net.requires_grad_(False)
    fastalter.prune_model(net, mask)
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_(True)
    backward(net, x)
    gradient = net.plain.weight.grad
    assert gradient is not None
    assert not gradient[~mask["plain.weight"]].any()


def test_two_models_in_a_process_keep_to_themselves() -> None:
    net, mask, x = net_and_mask()
    other, other_mask, _ = net_and_mask(0.3, seed=7)
    dense = Net()
    fastalter.prune_model(net, mask)
    fastalter.prune_model(other, other_mask)
    together = SGD([*net.parameters(), *other.parameters(), *dense.parameters()], lr=0.1, momentum=0.9)
    for _ in range(2):
        for model in (net, other, dense):
            backward(model, x)
        together.step()
    zeros_of(net, mask)
    zeros_of(other, other_mask)
    assert other.plain.weight[~mask["plain.weight"]].any()
    assert not (dense.plain.weight == 0).any()


def test_one_call_of_the_op_serves_all_weights_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    backward(net, x)
    calls: list[int] = []
    apply_mask = hold.ops.apply_mask
    monkeypatch.setattr(hold.ops, "apply_mask", lambda w, *rest: (calls.append(len(w)), apply_mask(w, *rest)))
    SGD(net.parameters(), lr=0.1).step()
    assert calls == [len(NAMES)]


# ---- the model is otherwise untouched -------------------------------------------------------------------------------


class Odd(nn.Module):
    """Weights whose memory is not laid out row by row: permuted, with gaps, and one shared by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        self.gaps = nn.Linear(6, 6, bias=False)
        self.gaps.weight = nn.Parameter(torch.randn(6, 12)[:, ::2])
        self.tied = nn.Linear(6, 6, bias=False)
        self.also = nn.Linear(6, 6, bias=False)
        self.also.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.also(self.tied(self.gaps(self.conv(x).mean((2, 3)))))  # type: ignore[no-any-return]


def test_identity_storage_and_strides_stay() -> None:
    net, mask = Odd(), mask_of(Odd(), ["conv.weight", "gaps.weight", "tied.weight"])
    before = {name: (p, p.data_ptr(), p.stride()) for name, p in net.named_parameters()}
    keys = list(net.state_dict())
    fastalter.prune_model(net, mask)
    opt = SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        backward(net, torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last))
        opt.step()
    for name, (parameter, pointer, strides) in before.items():
        now = net.get_parameter(name)
        assert now is parameter
        assert (now.data_ptr(), now.stride()) == (pointer, strides)
    zeros_of(net, mask)
    assert list(net.state_dict()) == keys


def test_what_is_kept_keeps_its_bits() -> None:
    net, mask, _ = net_and_mask()
    before = copy.deepcopy(net.state_dict())
    fastalter.prune_model(net, mask)
    for key, value in net.state_dict().items():
        kept = mask[key] if key in NAMES else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[kept], before[key][kept])


def test_a_fusion_model_is_taken_as_its_model() -> None:
    net, mask, _ = net_and_mask()
    branches = {"camera": ["plain"], "lidar": ["grouped"]}
    fusion = adapt(net, branches=branches, loss=lambda model, batch: model(batch).sum())
    assert isinstance(fusion, FusionModel)
    pruned = fastalter.prune_model(fusion, mask)
    assert pruned.held
    zeros_of(net, mask)


# ---- loading, saving, averaging, copying ----------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_state_loads_as_a_pruned_one(assign: bool) -> None:
    net, mask, x = net_and_mask()
    dense = Net().state_dict()
    fastalter.prune_model(net, mask)
    found = net.load_state_dict(dense, assign=assign)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    zeros_of(net, mask)
    opt = SGD(net.parameters(), lr=0.1)
    backward(net, x)  # the parameters may be new ones: their gradients are masked all the same
    gradient = net.linear.weight.grad
    assert gradient is not None
    assert not gradient[~mask["linear.weight"]].any()
    opt.step()
    zeros_of(net, mask)


def test_loading_into_a_part_or_through_a_wrapper_is_covered() -> None:
    net, mask, _ = net_and_mask()
    fastalter.prune_model(net, mask)
    net.linear.load_state_dict(Net().linear.state_dict())
    net.attention.load_state_dict(Net().attention.state_dict())
    zeros_of(net, mask)
    nn.DataParallel(net).load_state_dict({f"module.{key}": value for key, value in Net().state_dict().items()})
    zeros_of(net, mask)


@pytest.mark.parametrize("through", ["tied", "also"])
def test_loading_through_either_layer_of_a_shared_weight_is_covered(through: str) -> None:
    net = Odd()
    mask = mask_of(net, ["tied.weight"])
    fastalter.prune_model(net, mask)
    net.get_submodule(through).load_state_dict({"weight": torch.ones(6, 6)})
    zeros_of(net, mask)
    net.load_state_dict(Odd().state_dict())
    zeros_of(net, mask)


def test_the_state_dict_is_plain_and_loads_strictly_elsewhere() -> None:
    net, mask, _ = net_and_mask()
    keys = list(net.state_dict())
    fastalter.prune_model(net, mask)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state) == keys
    plain = Net()
    plain.load_state_dict(state, strict=True)
    zeros_of(plain, mask)
    assert pickle.loads(pickle.dumps(net.state_dict())).keys() == state.keys()
    plain.load_state_dict(Net().state_dict())
    assert plain.linear.weight.all()  # nobody holds the plain one


def test_an_average_made_after_pruning_is_held_with_it() -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    opt = SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        backward(net, x)
        opt.step()
        ema.update_parameters(net)
        zeros_of(ema, mask, "module.")
    ema.load_state_dict(AveragedModel(Net()).state_dict())
    zeros_of(ema, mask, "module.")


def test_an_average_made_before_pruning_is_pruned_by_its_own_call() -> None:
    net, mask, x = net_and_mask()
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    opt = SGD(net.parameters(), lr=0.1)
    backward(net, x)
    opt.step()
    ema.update_parameters(net)
    fastalter.prune_model(net, mask)
    fastalter.prune_model(ema, mask)  # its names all begin with "module."
    for _ in range(2):
        backward(net, x)
        opt.step()
        ema.update_parameters(net)
        zeros_of(ema, mask, "module.")


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_the_model_is_held_by_itself(how: str) -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    twin: Net = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    original = weakref.ref(net)
    del net
    gc.collect()
    assert original() is None
    opt = AdamW(twin.parameters(), lr=0.1)
    for _ in range(2):
        backward(twin, x)
        gradient = twin.linear.weight.grad
        assert gradient is not None
        assert not gradient[~mask["linear.weight"]].any()
        opt.step()
        zeros_of(twin, mask)
    twin.load_state_dict(Net().state_dict())
    zeros_of(twin, mask)


def test_releasing_a_model_leaves_its_copy_held_and_the_other_way_round() -> None:
    net, mask, _ = net_and_mask()
    pruned = fastalter.prune_model(net, mask)
    twin = copy.deepcopy(net)
    pruned.remove()
    for model in (net, twin):
        model.load_state_dict(Net().state_dict())
    assert net.linear.weight.all()
    zeros_of(twin, mask)


# ---- wrappers -------------------------------------------------------------------------------------------------------


def test_names_are_matched_under_wrappers() -> None:
    net, mask, _ = net_and_mask()
    compiled = torch.compile(net, backend="eager")
    fastalter.prune_model(compiled, mask)  # type: ignore[arg-type]
    zeros_of(net, mask)
    wrapped = nn.DataParallel(Net())
    fastalter.prune_model(wrapped, mask)
    zeros_of(wrapped.module, mask)
    part = Net()
    part.attention = torch.compile(part.attention, backend="eager")  # type: ignore[assignment]
    fastalter.prune_model(part, mask)
    assert "attention._orig_mod.in_proj_weight" in dict(part.named_parameters())
    assert not part.attention.in_proj_weight[~mask["attention.in_proj_weight"]].any()


def test_a_mask_made_under_wrappers_fits_the_plain_model() -> None:
    wrapped = nn.Module()
    wrapped.add_module("module", Net())
    mask = mask_of(wrapped, [f"module.{name}" for name in NAMES])
    net = Net()
    fastalter.prune_model(net, mask)
    for name in NAMES:
        assert not net.get_parameter(name)[~mask[f"module.{name}"]].any()


def test_a_layer_that_is_called_module_is_no_wrapper() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.weight = nn.Linear(4, 4), nn.Parameter(torch.ones(4, 4))

    net = Named()
    mask = mask_of(net, ["module.weight"])
    fastalter.prune_model(net, mask)
    zeros_of(net, mask)
    assert net.weight.all()  # which a stripped name would have hit


def test_a_compiled_model_trains_held() -> None:
    net, mask, x = net_and_mask()
    fastalter.prune_model(net, mask)
    compiled = torch.compile(net, backend="aot_eager")
    opt = SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        compiled(x).square().mean().backward()
        gradient = net.linear.weight.grad
        assert gradient is not None
        assert not gradient[~mask["linear.weight"]].any()
        opt.step()
    zeros_of(net, mask)


def test_distributed_training_sends_masked_gradients(tmp_path: Any) -> None:
    net, mask, x = net_and_mask()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fastalter.prune_model(net, mask)
        parallel = DistributedDataParallel(net)
        seen: list[Tensor] = []

        def keep(_state: object, bucket: Any) -> Any:
            seen.extend(
                gradient.clone() for gradient in bucket.gradients() if gradient.shape == net.linear.weight.shape
            )
            future = torch.futures.Future()  # type: ignore[var-annotated]
            future.set_result(bucket.buffer())
            return future

        keep.__annotations__ = {
            "bucket": torch.distributed.GradBucket
        }  # torch looks at the objects, not at their names
        parallel.register_comm_hook(None, keep)
        opt = SGD(parallel.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            backward(parallel, x)
            opt.step()
        zeros_of(net, mask)
        assert len(seen) == 2
        assert not any(gradient[~mask["linear.weight"]].any() for gradient in seen)
    finally:
        torch.distributed.destroy_process_group()


# ---- the handle -----------------------------------------------------------------------------------------------------


def test_remove_releases_every_hook_and_leaves_the_zeros() -> None:
    net, mask, x = net_and_mask()
    pruned = fastalter.prune_model(net, mask)
    counts = f"{mask.kept_total:,} of {mask.layout.size:,}"
    assert repr(pruned) == f"Pruned({counts} weights kept in 5 layers; zeros held)"
    pruned.remove()
    zeros_of(net, mask)
    assert repr(pruned).endswith("not held any more)")
    assert not pruned.held
    for module in net.modules():
        assert not module._load_state_dict_post_hooks
    for parameter in net.parameters():
        assert not parameter._post_accumulate_grad_hooks
    assert not hold._held
    backward(net, x)
    SGD(net.parameters(), lr=0.1).step()
    assert net.linear.weight[~mask["linear.weight"]].any()
    pruned.remove()  # once more does no harm
    with pytest.raises(MaskError, match="not held any more; call prune_model with it again"):
        pruned.apply()


def test_apply_enforces_what_was_written_by_hand() -> None:
    net, mask, _ = net_and_mask()
    pruned = fastalter.prune_model(net, mask)
    for name in NAMES:
        net.get_parameter(name).data.fill_(2.0)
    pruned.apply()
    zeros_of(net, mask)


def test_holding_needs_no_handle_and_the_handle_keeps_no_model() -> None:
    net, mask, _ = net_and_mask()
    opt = SGD(net.parameters(), lr=0.1)
    pruned = fastalter.prune_model(net, mask)
    alive = weakref.ref(net)
    weight = net.linear.weight
    del net
    assert alive() is None  # at once: no cycle through the hooks
    assert not pruned.held
    assert not hold._held
    assert not weight._post_accumulate_grad_hooks
    weight.grad = torch.ones_like(weight)
    opt.step()
    assert weight[~mask["linear.weight"]].any()


def test_one_hook_follows_the_optimizers_and_only_while_it_is_needed() -> None:
    before = len(optimizer._global_optimizer_post_hooks)
    (net, mask, _), (other, _, _) = net_and_mask(), net_and_mask()
    first, second = fastalter.prune_model(net, mask), fastalter.prune_model(other, mask)
    assert len(optimizer._global_optimizer_post_hooks) == before + 1
    first.remove()
    assert len(optimizer._global_optimizer_post_hooks) == before + 1
    second.remove()
    assert len(optimizer._global_optimizer_post_hooks) == before
    fastalter.prune_model(net, mask)
    assert len(optimizer._global_optimizer_post_hooks) == before + 1


def test_a_second_mask_takes_the_place_of_the_first_and_says_what_it_frees() -> None:
    net, first, x = net_and_mask(0.6, seed=0)
    second = net_and_mask(0.6, seed=1)[1]
    earlier = fastalter.prune_model(net, first)
    freed = sum(int((second[name] & ~first[name]).sum()) for name in NAMES)
    with pytest.warns(UserWarning, match=rf"earlier mask is replaced: {freed:,} weights that it pruned are free again"):
        later = fastalter.prune_model(net, second)
    assert not earlier.held
    assert later.held
    for name in NAMES:
        assert not net.get_parameter(name)[~(first[name] & second[name])].any()  # free again, from zero
    backward(net, x)
    SGD(net.parameters(), lr=0.1).step()
    zeros_of(net, second)
    assert net.linear.weight[second["linear.weight"] & ~first["linear.weight"]].any()


def test_pruning_in_steps_is_silent() -> None:
    net, _, _ = net_and_mask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ratio in (0.2, 0.5, 0.9):
            mask = mask_of(net, NAMES, ratio, seed=3)  # of the same scores: each keeps a part of the one before
            fastalter.prune_model(net, mask)
            zeros_of(net, mask)
    assert len(list(hold._all())) == len(NAMES)


def test_parts_pruned_one_by_one_and_then_the_whole() -> None:
    net, mask, _ = net_and_mask()
    part = mask_of(net.linear, ["weight"], seed=5)
    fastalter.prune_model(net.linear, part)
    fastalter.prune_model(net.plain, mask_of(net.plain, ["weight"]))
    assert len(list(hold._all())) == 2
    with pytest.warns(UserWarning, match="free again"):
        fastalter.prune_model(net, mask)
    assert len(list(hold._all())) == len(NAMES)


# ---- what is refused ------------------------------------------------------------------------------------------------


def refusal(net: nn.Module, mask: Mask) -> str:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(MaskError) as caught:
        fastalter.prune_model(net, mask)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not hold._held
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_mask_of_another_model_is_refused_and_nothing_is_changed() -> None:
    net, mask, _ = net_and_mask()
    net.linear = nn.Linear(8, 6)
    assert refusal(net, mask).startswith("linear.weight: its shape is (5, 8) in the mask and (6, 8) in the model")
    del net.linear
    assert refusal(net, mask).startswith("linear.weight: the mask covers this weight and the model has none")


def test_weights_that_are_no_parameters_of_their_own_are_refused() -> None:
    net, mask, _ = net_and_mask()
    nn.utils.parametrizations.weight_norm(net.linear)
    assert "linear.weight: the model computes this weight from others" in refusal(net, mask)
    net, mask, _ = net_and_mask()
    prune.l1_unstructured(net.plain, "weight", 0.5)
    assert "plain.weight: the model computes this weight from others" in refusal(net, mask)
    net, mask, _ = net_and_mask()
    net.linear = nn.LazyLinear(5)  # type: ignore[assignment]
    with pytest.raises(MaskError, match=r"linear\.weight is not initialised yet"):
        fastalter.prune_model(net, mask)


def test_a_dtype_without_zeros_of_its_own_is_refused() -> None:
    net, mask, _ = net_and_mask()
    net.linear.weight = nn.Parameter(net.linear.weight.to(torch.complex64))
    assert "linear.weight is torch.complex64; prune a model of float32" in refusal(net, mask)


def test_a_weight_that_changes_its_shape_while_held_is_named() -> None:
    net, mask, _ = net_and_mask()
    pruned = fastalter.prune_model(net, mask)
    net.linear.weight = nn.Parameter(torch.ones(4, 8))
    with pytest.raises(MaskError, match=r"linear\.weight is held pruned and now has shape \(4, 8\), its mask \(5, 8\)"):
        pruned.apply()
    opt = SGD([net.linear.weight], lr=0.1)
    net.linear.weight.grad = torch.ones(4, 8)
    with pytest.raises(MaskError, match="call remove"):
        opt.step()
    pruned.remove()
    opt.step()


# ---- on the model it is for -----------------------------------------------------------------------------------------


def test_bevfusion_trains_held_through_the_trainer() -> None:
    """Sparse convolutions, attention and all; clipping sees the sparse gradient."""
    model = build("bevfusion-tiny", seed=1)
    fusion = adapt(model)
    layout = Layout.of(find_weights(fusion), fusion.branch_names)
    score = torch.rand(layout.size, generator=torch.Generator().manual_seed(0))
    mask = select(score, layout, round(0.1 * layout.size), ratio=0.9)
    fastalter.prune_model(fusion, mask)
    norms: list[float] = []

    def sparse_norm() -> None:
        gradients = [
            p.grad[mask[n]] if n in mask.layout else p.grad for n, p in model.named_parameters() if p.grad is not None
        ]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        zeros_of(model, mask)

    batches = list(load("synthetic", batches=2, batch_size=1, config=model.config, seed=0))
    options = TrainOptions(steps=2, lr=1e-3, clip=None, weight_decay=0.1)
    result = Trainer(model, fusion.loss, batches, options, after_step=[sparse_norm]).run()
    zeros_of(model, mask)
    assert [row["grad_norm"] for row in result.losses] == pytest.approx(norms, rel=1e-4)
    build("bevfusion-tiny").load_state_dict(model.state_dict(), strict=True)
