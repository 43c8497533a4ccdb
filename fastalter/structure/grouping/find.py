"""`find_groups`: run a network once and say which of its channels go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from fastalter.errors import ModelError
from fastalter.fusion.adapt import FusionModel
from fastalter.fusion.preserve import preserved
from fastalter.fusion.stubs import replaced_forwards
from fastalter.fusion.tree import tensors
from fastalter.structure.grouping.assemble import assemble, pin_sets
from fastalter.structure.grouping.rules.modules import seen_from_outside
from fastalter.structure.grouping.settle import settle
from fastalter.structure.grouping.trace import Labelled, Trace, Tracing, plain
from fastalter.structure.grouping.trial import failing_sets
from fastalter.structure.groups import ChannelGroups

IN_TREE = "fastalter.models."


def find_groups(model: FusionModel | nn.Module, batch: Any, *, trial: bool | None = None) -> ChannelGroups:
    """The channel groups of a network, from one forward pass in eval mode and a trial.

    Args:
        model: a `FusionModel`, whose loss is run on the batch; or any module, which is called with the batch (with its
            items, where it is a tuple), and whose channels are all of the branch "fusion".
        batch: what the loss takes. One sample will do; its size matters for `ChannelGroups.flops` alone.
        trial: also compact the network once, and run it: what cannot leave after all, because the code has its width
            in a number, say, is found and stays. Costs two forward passes, and two a set where something fails. None
            leaves it out for in-tree networks, which the tests have tried.

    Returns:
        ChannelGroups. What leaves the network (predictions) and what mixes channels in a way that the tracer has no
        rule for stays, with the reason, in `ChannelGroups.kept`. The model comes back bitwise as it was.

    Raises:
        ModelError: a sensor's branch has no channel that can go; names what holds them.
    """
    fusion = model if isinstance(model, FusionModel) else FusionModel(model, {}, {}, _call)
    trace = Trace(fusion.model)
    if trial is None:
        trial = not type(fusion.model).__module__.startswith(IN_TREE)
    with preserved(fusion.model), torch.no_grad(), _plain_attention():
        fusion.model.eval()
        _run_labelled(trace, fusion, batch)
        settle(trace)
        groups = assemble(trace, fusion)
        if trial and (failed := failing_sets(fusion.model, groups, partial(_outputs, fusion, batch))):
            pin_sets(trace, fusion, failed)
            groups = assemble(trace, fusion)
    _check_branches(fusion, groups)
    return groups


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fast path of torch's transformer layers, which passes their modules by."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _run_labelled(trace: Trace, fusion: FusionModel, batch: Any) -> None:
    leave = fusion.model.register_forward_hook(lambda module, inputs, output: _left(trace, output))
    try:
        with replaced_forwards(seen_from_outside(trace), fusion.model), trace.watching(), Tracing(trace):
            _left(trace, fusion.loss(fusion.model, batch))
    finally:
        leave.remove()


def _outputs(fusion: FusionModel, batch: Any, network: nn.Module) -> list[Any]:
    """What the network returns while the loss runs, and what the loss returns."""
    returned: list[Any] = []
    hook = network.register_forward_hook(lambda module, inputs, output: returned.append(output))
    torch.manual_seed(0)
    try:
        loss = fusion.loss(network, batch)
    finally:
        hook.remove()
    return returned or [loss]


def _call(model: nn.Module, batch: Any) -> Any:
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def _left(trace: Trace, output: Any) -> Any:
    """What leaves the network keeps its channels, and leaves without labels."""
    for tensor in tensors(output):
        if isinstance(tensor, Labelled):
            trace.pin(trace.settled(tensor.labels), "it leaves the network")
    return plain(output)


def _check_branches(fusion: FusionModel, groups: ChannelGroups) -> None:
    for branch, paths in fusion.branches.items():
        if branch in groups.layout.branches:
            continue
        held = [kept for kept in groups.kept if _inside(kept.layer, paths)]
        why = "; ".join(f"{kept.layer}: {kept.reason}" for kept in held[:5]) or "no layer of it ran"
        raise ModelError(f"branch {branch!r}: none of its channels can be pruned ({why}); see ChannelGroups.kept")


def _inside(layer: str, paths: Sequence[str]) -> bool:
    return any(layer == path or layer.startswith(f"{path}.") for path in paths)
