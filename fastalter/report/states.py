"""The network in the states of the paper's Figure 3: before masking, after each reactivation, and pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastalter.altermoma import Batches, Clock, Gradients, Progress, Reactivation, SharedPasses
from fastalter.altermoma.reactivation import sgd_step
from fastalter.errors import ScoringError
from fastalter.fusion import FusionModel, find_weights
from fastalter.fusion.features import bev_maps
from fastalter.fusion.preserve import Bn, preserved, require_grad, scoring_mode
from fastalter.fusion.stubs import Outputs, branch_zeros, recorded, replayed
from fastalter.masks import Mask, masked


@dataclass(frozen=True)
class State:
    """One column of Figure 3.

    name    "before masking", "lidar masked, reactivated", "pruned"
    masked  the masked branch, whose map is zero, or None
    maps    branch (and "fusion") -> [B, X, Y], see `fusion.features.bev_maps`
    """

    name: str
    masked: str | None
    maps: dict[str, Tensor]


def feature_states(
    fusion: FusionModel,
    batches: Iterable[Any],
    mask: Mask | None = None,
    *,
    reactivation: Reactivation,
    bn: Bn = "train",
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> list[State]:
    """The maps of the first batch in every state; with the run's own batches, theta_B is that of its scores.

    The model is afterwards bitwise what it was, also after an exception. `mask` adds the pruned state.

    Raises:
        ScoringError: fewer batches than reactivation steps, or a loss that is not finite.
        ModelError: see `bev_maps`.
        MaskError: the mask is of another model.
    """
    data = Batches(batches)
    if len(data) < reactivation.batches:
        raise ScoringError(f"reactivation takes {reactivation.batches} batches and there are {len(data)}; pass more")
    weights = find_weights(fusion)
    with preserved(fusion.model) as snapshot:
        scoring_mode(fusion.model, bn)
        require_grad([w.parameter for w in weights if w.prunable])
        parameters = {w.name: w.parameter for w in weights if w.parameter.requires_grad}
        shown = next(iter(data))[1]
        with recorded(fusion) as record:
            states = [State("before masking", None, bev_maps(fusion, shown))]
        zeros = {branch: branch_zeros(fusion, record, branch) for branch in fusion.branches}
        snapshot.restore_tensors()
        passes = SharedPasses(fusion, weights, Clock(), seed)
        first = _start(passes, data, reactivation.batches, progress)
        for branch in reversed(list(fusion.branches)):
            snapshot.restore_tensors()
            _reactivate(passes, branch, data, first[branch], parameters, reactivation, progress)
            states.append(State(f"{branch} masked, reactivated", branch, _masked_maps(fusion, shown, zeros[branch])))
        snapshot.restore_tensors()
        if mask is not None:
            with masked(fusion.model, mask):
                states.append(State("pruned", None, bev_maps(fusion, shown)))
    return states


def _start(passes: SharedPasses, data: Batches, count: int, progress: Progress) -> dict[str, Gradients]:
    """The passes at theta_init, as Algorithm 1 begins; the gradients of D_1 per masked branch are the first step's."""
    first: dict[str, Gradients] = {}
    progress("features: start", 0, count)
    for index, batch in data.first(count):
        for stage, gradients in passes.at_theta_init(index, batch):
            if index == 0 and stage is not None:
                first[stage] = gradients
        progress("features: start", index + 1, count)
    return first


def _reactivate(
    passes: SharedPasses,
    branch: str,
    data: Batches,
    first: Gradients,
    parameters: Mapping[str, nn.Parameter],
    reactivation: Reactivation,
    progress: Progress,
) -> None:
    stage = f"features: reactivate, {branch} masked"
    progress(stage, 0, reactivation.batches)
    for index, batch in data.first(reactivation.batches):
        sgd_step(parameters, first if index == 0 else passes.masked(branch, index, batch), reactivation.lr)
        progress(stage, index + 1, reactivation.batches)


def _masked_maps(fusion: FusionModel, batch: Any, zeros: Outputs) -> dict[str, Tensor]:
    with replayed(fusion, zeros):
        return bev_maps(fusion, batch)
