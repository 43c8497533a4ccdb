"""Small networks to score, and what the oracles need to know of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fastalter
from fastalter.fusion import adapt, find_weights
from tests.altermoma.nets import (
    USER_BRANCHES,
    USER_OUTLETS,
    SmallFusion,
    UserNet,
    seeded,
    small_batches,
    user_batches,
    user_loss,
)


class Case:
    """A net, its batches, and its seam: "small" has batch norm and dropout, "user" attention and a shared weight."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.arguments: dict[str, Any] = {}
        if name == "small":
            self.net = seeded(SmallFusion, dtype=dtype)
            self.batches: list[Any] = small_batches(3, dtype=dtype)
            self.loss = lambda net, batch: (d := net.loss(batch))["loss_cls"] + d["loss_reg"]
            self.forward = lambda net, batch: net(batch)
        else:
            self.net = seeded(UserNet, dtype=dtype)
            self.batches = user_batches(3, dtype)
            self.loss = user_loss
            self.arguments = {"branches": USER_BRANCHES, "outlets": USER_OUTLETS, "loss": user_loss}
            self.forward = lambda net, batch: net(batch[0], batch[1])

    def score(self, method: Any, batches: list[Any] | None = None, **options: Any) -> fastalter.Scores:
        """The product's scores."""
        options = {"progress": False, "reactivation": fastalter.Reactivation(2, 0.05)} | options
        return fastalter.score_model(self.net, batches or self.batches, method=method, **self.arguments, **options)

    def branch_of(self) -> dict[str, str]:
        """Prunable weight -> branch."""
        return {w.name: w.branch for w in find_weights(adapt(self.net, **self.arguments)) if w.prunable}

    def prunable(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """The prunable weights of a copy of the net."""
        parameters = dict(net.named_parameters())
        return {name: parameters[name] for name in self.branch_of()}


def assert_close(scores: fastalter.Scores, expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """Within `tolerance` of the largest score of all."""
    assert sorted(scores) == sorted(expected)
    peak = max(float(e.detach().abs().max()) for e in expected.values())
    assert peak > 0
    for name in scores:
        worst = float((scores[name] - expected[name]).abs().max())
        assert worst <= tolerance * peak, f"{name}: off by {worst / peak:.1e} of the maximum"


def highest(score: dict[str, Tensor], alive: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    """Where the `keep` highest scores among those alive are; ties to the first."""
    ranked = [
        (-float(value), place, name, i)
        for place, (name, tensor) in enumerate(score.items())
        for i, (value, lives) in enumerate(
            zip(tensor.reshape(-1).tolist(), alive[name].reshape(-1).tolist(), strict=True)
        )
        if lives
    ]
    kept = {name: torch.zeros(tensor.numel(), dtype=torch.bool) for name, tensor in score.items()}
    for _, _, name, i in sorted(ranked, key=lambda item: (*item[:2], item[3]))[:keep]:
        kept[name][i] = True
    return {name: flags.view(score[name].shape) for name, flags in kept.items()}
