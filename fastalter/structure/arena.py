"""The arena of channel groups: one gate m = 1 per group in the place of one weight, so that every criterion that works
on an arena works on channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fastalter.altermoma.arena import Accumulator, Arena, Layout
from fastalter.fusion.weights import Weight
from fastalter.structure.gates import Gates
from fastalter.structure.groups import ChannelGroups


class GateAccumulator(Accumulator):
    """Takes gradients by parameter name and sums dL/dm, with the parameters as they are when it is given them."""

    def __init__(self, gates: Gates, layout: Layout, like: Tensor, skip: str | None = None) -> None:
        super().__init__(layout, like, skip)
        self._gates = gates

    def add(self, gradients: dict[str, Tensor], at: Mapping[str, Tensor] | None = None) -> None:
        """Add dL/dm; see `Gates.derivative` for `at`."""
        super().add(self._by_set(self._gates.derivative(gradients, at)))

    def add_squares(self, gradients: dict[str, Tensor]) -> None:
        """Add (dL/dm)^2."""
        super().add_squares(self._by_set(self._gates.derivative(gradients)))

    def _by_set(self, derivative: Tensor) -> dict[str, Tensor]:
        return {e.name: derivative[e.offset : e.offset + e.size].view(e.shape) for e in self.layout.entries}


class GateArena(Arena):
    """theta is ones [G], float64 throughout: it is small.

    The product theta * grad of the scores is then dL/dm itself. `end` holds it at the reactivated theta_B, with the
    reactivated values in the product: it is the derivative by a gate of the network as it is there.
    """

    def __init__(self, groups: ChannelGroups, weights: Sequence[Weight], model: nn.Module) -> None:
        """See `Gates`, also for what it raises."""
        self._groups = groups
        self._model = model
        self._gates = Gates(groups, weights, model)
        self._open(groups.layout, torch.ones(groups.size, dtype=torch.float64, device=self._gates.device))

    def accumulator(self, skip: str | None = None) -> GateAccumulator:
        """A buffer that sums dL/dm, without the groups of the branch `skip`, if it has any."""
        return GateAccumulator(self._gates, self.layout, self.theta, skip if skip in self.layout.branches else None)

    def magnitudes(self) -> Tensor:
        """See `magnitudes`."""
        return magnitudes(self._groups, self._model).to(self.theta.device)


@torch.no_grad()
def magnitudes(groups: ChannelGroups, model: nn.Module) -> Tensor:
    """L2 norm over every parameter entry that leaves with the group, float64 [G].

    Those are its rows and biases, its entries in norms, and the columns that read it; an entry that is in a row and in
    a column of the same group counts once.
    """
    squares = torch.zeros(groups.size + 1, dtype=torch.float64)  # FIXED is -1, the last
    buffers = set(groups.buffers)
    for name, axes in groups.axes_of.items():
        if name in buffers:
            continue
        square = model.get_parameter(name).detach().cpu().double().square()
        for place, axis in enumerate(axes):
            own = _along(axis.groups, axis.axis, square.dim())
            part = square
            for earlier in axes[:place]:
                part = part * (_along(earlier.groups, earlier.axis, square.dim()) != own)
            others = [dim for dim in range(square.dim()) if dim != axis.axis]
            squares.index_add_(0, axis.groups % (groups.size + 1), part.sum(others) if others else part)
    return squares[:-1].sqrt()


def _along(groups: Tensor, axis: int, dims: int) -> Tensor:
    """The groups of an axis, shaped to broadcast over a tensor of `dims` axes."""
    return groups.view([-1 if dim == axis else 1 for dim in range(dims)])
