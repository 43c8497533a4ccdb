"""dL/dm of every channel group: the derivative by a gate m = 1 where the group's channels leave their layers.

A gate behind an affine norm multiplies gamma and beta; one behind a layer without a norm multiplies the layer's rows
and bias; one in front of a projection multiplies its input columns. So dL/dm is a sum of theta * dL/dtheta over those,
and the gates of a group add up (docs/method.md). Sums come first; whoever scores takes the absolute value afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from fastalter import ops
from fastalter.errors import ScoringError
from fastalter.fusion.weights import Weight
from fastalter.structure.groups import FIXED, ChannelGroups, Gate


@dataclass(frozen=True)
class _Slices:
    """The slices of one parameter that gates multiply, as `ops.channel_sum` takes them.

    name     of the parameter, as gradients have it
    members  int64 [R, 4], the positions sorted by group
    edges    int64 [U + 1], where each group's members begin
    groups   int64 [U], the groups' numbers
    """

    name: str
    parameter: nn.Parameter
    members: Tensor
    edges: Tensor
    groups: Tensor

    def sums(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Sum of theta * grad per group, float64 [U]."""
        wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
        theta, grad = (x.detach().to(wide).contiguous().view(-1) for x in (theta, grad))
        return ops.channel_sum(theta, grad, self.members, self.edges)


class Gates:
    """The gates of a network: turns gradients by parameter name into dL/dm.

    parameters  name -> the parameters whose gradients it needs; frozen ones have to be thawed first
    device      of the parameters
    """

    def __init__(self, groups: ChannelGroups, weights: Sequence[Weight], model: nn.Module) -> None:
        """`weights` are all of the model's parameters, as `find_weights` gives them.

        Raises:
            ScoringError: a gate names something that is no parameter or has other sizes than the gate, one parameter is
                gated twice in different ways, or a group has no gate.
        """
        self._size = groups.size
        gated = _gated(groups, _first_names(weights, model))
        slices = [_slices(gate, name, model.get_parameter(name), axis) for (name, axis), gate in gated.items()]
        _check_complete(groups, slices)
        self.parameters = {part.name: part.parameter for part in slices}
        self.device = next((p.device for p in self.parameters.values()), torch.device("cpu"))
        self._slices = [_on(part, self.device) for part in slices]

    def derivative(self, gradients: Mapping[str, Tensor], at: Mapping[str, Tensor] | None = None) -> Tensor:
        """dL/dm, float64 [G], in the groups' order.

        gradients  dL/dtheta by parameter name; a parameter without one adds nothing
        at         the parameters' values that the gradients were taken at, by name; those not in it are as in the model
        """
        values = at or {}
        total = torch.zeros(self._size, dtype=torch.float64, device=self.device)
        for part in self._slices:
            grad = gradients.get(part.name)
            if grad is not None:
                total[part.groups] += part.sums(values.get(part.name, part.parameter), grad)
        return total


def _first_names(weights: Sequence[Weight], model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the name that gradients have it by (a shared one has several)."""
    first = {id(weight.parameter): weight.name for weight in weights}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if id(parameter) in first}


def _gated(groups: ChannelGroups, names: Mapping[str, str]) -> dict[tuple[str, int], Gate]:
    """(parameter, axis) -> the gate that multiplies its slices."""
    found: dict[tuple[str, int], Gate] = {}
    for gate in groups.gates:
        for tensor, axis in [(gate.weight, gate.axis)] + ([] if gate.bias is None else [(gate.bias, 0)]):
            if tensor not in names:
                raise ScoringError(f"gate of {gate.layer}: the model has no parameter {tensor}; find groups again")
            # Where layers share a parameter and are gated alike, its gradient holds the sum over all its uses already.
            earlier = found.setdefault((names[tensor], axis), gate)
            if not torch.equal(earlier.groups, gate.groups):
                raise ScoringError(
                    f"{tensor} is shared by {earlier.layer} and {gate.layer}, whose channels are of different groups; "
                    "give each its own parameter"
                )
    return found


def _check_complete(groups: ChannelGroups, slices: Sequence[_Slices]) -> None:
    gated = torch.zeros(groups.size, dtype=torch.bool)
    for part in slices:
        gated[part.groups] = True
    for entry in groups.layout.entries:
        if not bool(gated[entry.offset : entry.offset + entry.size].all()):
            raise ScoringError(f"{entry.name}: some of its channel groups have no gate; find groups again")


def _slices(gate: Gate, name: str, parameter: nn.Parameter, axis: int) -> _Slices:
    shape = tuple(parameter.shape)
    if axis >= len(shape) or shape[axis] != gate.groups.numel():
        raise ScoringError(
            f"gate of {gate.layer}: it has {gate.groups.numel()} channels, and axis {axis} of {name} {list(shape)} has "
            "not as many; find groups again"
        )
    places = (gate.groups != FIXED).nonzero().flatten()
    order = places[gate.groups[places].argsort(stable=True)]
    numbers, counts = torch.unique_consecutive(gate.groups[order], return_counts=True)
    inner, outer = prod(shape[axis + 1 :]), prod(shape[:axis])
    rest = torch.tensor([outer, shape[axis] * inner, inner]).expand(order.numel(), 3)
    members = torch.cat([order[:, None] * inner, rest], 1)
    return _Slices(name, parameter, members, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), numbers)


def _on(part: _Slices, device: torch.device) -> _Slices:
    members, edges, groups = (table.to(device) for table in (part.members, part.edges, part.groups))
    return _Slices(part.name, part.parameter, members, edges, groups)
