"""The parts of a fusion network that a profile lists: its modules down to the first that is called as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fastalter.fusion.adapt import FUSION, FusionModel


@dataclass(frozen=True)
class Part:
    """A module that the model calls as a whole, and the branch it belongs to."""

    branch: str
    path: str
    module: nn.Module

    @property
    def parameters(self) -> int:
        """Learned ones, as `requires_grad` tells: geometry that is stored as a parameter does not count."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)


def parts_of(fusion: FusionModel) -> list[Part]:
    """In the order of the branches, those of the fusion branch last; together they are the whole model."""
    branch_of = {path: branch for branch, paths in fusion.branches.items() for path in paths}
    found = list(_walk("", fusion.model, branch_of, FUSION))
    order = fusion.branch_names
    return sorted(found, key=lambda part: order.index(part.branch))


def _walk(path: str, module: nn.Module, branch_of: dict[str, str], branch: str) -> Iterator[Part]:
    branch = branch_of.get(path, branch)
    leads_on = any(known.startswith(f"{path}.") for known in branch_of) or not path
    if path and not leads_on and not isinstance(module, (nn.ModuleDict, nn.ModuleList)):
        yield Part(branch, path, module)
        return
    for name, child in module.named_children():
        yield from _walk(f"{path}.{name}".lstrip("."), child, branch_of, branch)
