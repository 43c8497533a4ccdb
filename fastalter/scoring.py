"""`score_model`: borrow a model, run a criterion on it, give it back bitwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from fastalter.altermoma import Batches, Clock, Progress, Reactivation, ReriData
from fastalter.criteria import CRITERIA, Criterion, Options, Problem, Ranking, Scores
from fastalter.criteria.problem import Granularity, check_granularity
from fastalter.criteria.settings import bound_settings, criterion_of, described
from fastalter.errors import ScoringError
from fastalter.fusion import FusionModel, adapt, find_weights
from fastalter.fusion.adapt import Loss
from fastalter.fusion.preserve import Bn, preserved, require_grad, scoring_mode
from fastalter.fusion.weights import Prunable, Weight, branch_counts
from fastalter.masks import keep_count, layer_kinds
from fastalter.structure.gates import Gates
from fastalter.structure.groups import ChannelGroups


def score_model(
    model: nn.Module | FusionModel,
    batches: Iterable[Any] | None = None,
    *,
    loss: Loss | None = None,
    branches: Mapping[str, Sequence[str]] | None = None,
    outlets: Mapping[str, str] | None = None,
    method: str | Criterion = "altermoma",
    settings: Mapping[str, Any] | None = None,
    ratio: float = 0.8,
    granularity: Granularity = "weight",
    groups: ChannelGroups | None = None,
    reactivation: Reactivation | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    reri_data: ReriData = "paired",
    prunable: Prunable | None = None,
    bn: Bn = "train",
    direct: bool = False,
    keep_terms: bool = False,
    seed: int = 0,
    progress: bool | Progress = True,
    clock: Clock | None = None,
) -> Scores:
    """Score every prunable weight, or channel group, of a camera-LiDAR (or any multi-sensor) fusion model.

    Args:
        model: an nn.Module, or what `fusion.adapt` made of one. Afterwards it is bitwise what it was: parameters,
            buffers, .grad, requires_grad, training flags, hooks, the process's random state; also after an exception.
        batches: a list or other re-iterable; every element goes to the loss as it is (an in-tree Batch is moved to the
            model's device and dtype). None, for an in-tree model only: synthetic batches; the metadata says so.
        loss, branches, outlets: see `fusion.adapt`.
        method: a criterion of `fastalter.criteria.CRITERIA`, or a function criterion(problem, **settings) -> Ranking.
        settings: keyword arguments of the criterion, as {"steps": 3}. altermoma has none: the arguments here are its.
        ratio: the ratio that the mask will have. Scores of synflow and imp are good for it alone; others ignore it.
        granularity: "weight", or "channel": one score per channel group, from the derivative by a gate on it
            (`structure.gates`). Of the criteria that score single weights alone there is none.
        groups: the channel groups; None finds them on the first batch (`structure.find_groups`).
        reactivation: B and the learning rate of eq. 16; default Reactivation().
        alpha, beta: weights of DeCI and ReRI (eq. 11 to 13). beta = 0 ranks inside a branch as SNIP does.
        reri_data: "paired": both gradients of ReRI on all batches. "paper": the second on D_B alone, as eq. 10 reads.
        prunable: prunable(name, parameter, module) -> bool in place of the default set P; for single weights.
        bn: batch norms use batch statistics ("train") or running ones ("frozen"). Dropout and stochastic depth are off.
        direct: the plain form of Algorithm 1, the oracle: same scores, about 1.7 times the work.
        keep_terms: keep what the scores are made of, too: `Scores.terms`, of altermoma "deci" and "reri".
        seed: of whatever randomness the model keeps, and of the criterion `random`.
        progress: True shows bars on a terminal; or a callable(stage, done, total).
        clock: receives seconds per stage; a caller that times more stages passes its own.

    Returns:
        Scores: one per prunable weight or channel group, with the metadata of the run.

    Raises:
        ModelError, DataError, ScoringError: see `fusion.adapt`, `Batches` and the criterion; each names the place.
        MaskError: the ratio is not in [0, 1).
    """
    name, criterion = criterion_of(method, CRITERIA)
    _one_of("granularity", granularity, Granularity)
    channels = granularity == "channel"
    check_granularity(name, {name: criterion} | CRITERIA, granularity)
    _check_groups(channels, groups, prunable)
    bound = bound_settings(name, criterion, settings)
    keep_count(1, ratio)  # refuses a ratio outside [0, 1)
    _one_of("reri_data", reri_data, ReriData)
    _one_of("bn", bn, Bn)
    options = Options(reactivation or Reactivation(), alpha, beta, reri_data, direct, seed, ratio, keep_terms)
    clock = clock or Clock()
    fusion = adapt(model, branches=branches, outlets=outlets, loss=loss)
    weights = find_weights(fusion, prunable)
    data, description, synthetic = _data(fusion, batches, options)
    walked = Batches(data)
    with preserved(fusion.model) as snapshot, _progress(progress) as report:
        if channels:
            groups = groups or _found(fusion, walked, clock)
            require_grad(list(Gates(groups, weights, fusion.model).parameters.values()))
        scoring_mode(fusion.model, bn)
        require_grad([w.parameter for w in weights if w.prunable])
        problem = Problem(fusion, weights, walked, options, snapshot.restore_tensors, clock, report, groups)
        ranking = _checked(name, criterion(problem, **bound), keep_terms, groups)
    metadata = {
        "method": name,
        "model": type(fusion.model).__name__,
        "data": description,
        "synthetic": synthetic,
        "seed": seed,
        "settings": _settings(method, options, bn) | described(bound),
        "batches": len(data),
        "granularity": granularity,
        "branches": _branches(fusion, weights, groups),
        "layers": {} if channels else layer_kinds(fusion.model, ranking.layout),
        "seconds": dict(clock.seconds),
        "network_seconds": clock.network_seconds,
        "warnings": [*fusion.notes, *ranking.warnings],
        **ranking.details,
    }
    if ranking.for_ratio is not None:
        metadata["for_ratio"] = ranking.for_ratio
    return Scores(ranking.score, ranking.layout, metadata, ranking.histogram, ranking.terms, groups)


def _check_groups(channels: bool, groups: ChannelGroups | None, prunable: Prunable | None) -> None:
    if channels and prunable is not None:
        raise ScoringError("prunable chooses single weights; for channels pass groups that leave out what has to stay")
    if groups is not None and not channels:
        raise ScoringError("groups are given and granularity is 'weight'; pass granularity='channel' with them")


def _found(fusion: FusionModel, batches: Batches, clock: Clock) -> ChannelGroups:
    from fastalter.structure.grouping.find import find_groups

    first = next(iter(batches), None)
    if first is None:
        raise ScoringError("batches are empty: channel groups are found by running the model on one")
    with clock.stage("channel groups"):
        return find_groups(fusion, first[1])


def _branches(fusion: FusionModel, weights: list[Weight], groups: ChannelGroups | None) -> dict[str, dict[str, int]]:
    """Parameters of every branch, and how many of its weights or channel groups may be pruned."""
    counts = branch_counts(fusion, weights)
    if groups is not None:
        for branch, count in counts.items():
            count["prunable"] = sum(e.size for e in groups.layout.entries if e.branch == branch)
    return counts


def _checked(name: str, ranking: Any, keep_terms: bool, groups: ChannelGroups | None) -> Ranking:
    """What the criterion returned, if it is a Ranking whose numbers fit its layout, and that the groups if given."""
    if not isinstance(ranking, Ranking):
        raise ScoringError(f"method {name!r} returned a {type(ranking).__name__}; return a fastalter.criteria.Ranking")
    if groups is not None and ranking.layout.entries != groups.layout.entries:
        raise ScoringError(f"method {name!r} ranks something else than the channel groups; use problem.arena()")
    size = ranking.layout.size
    for what, arena in {"score": ranking.score, **ranking.terms}.items():
        if arena.shape != (size,) or arena.dtype not in (torch.float32, torch.float64):
            found = f"{list(arena.shape)} {arena.dtype}"
            raise ScoringError(f"method {name!r}: its {what} is {found}; make it [{size}], float32 or float64")
    if keep_terms and not ranking.terms:
        ranking.warnings.append(f"keep_terms: {name} scores have no terms to keep")
    return ranking


def _one_of(name: str, value: Any, literal: Any) -> None:
    if value not in literal.__args__:
        raise ScoringError(f"{name} is {value!r}; it takes {' or '.join(map(repr, literal.__args__))}")


def _settings(method: str | Criterion, options: Options, bn: str) -> dict[str, Any]:
    """The arguments that the method may have read: all of them for altermoma and for a function of the caller's."""
    if isinstance(method, str) and method != "altermoma":
        return {"bn": bn}
    return {
        "alpha": options.alpha,
        "beta": options.beta,
        "reactivation_batches": options.reactivation.batches,
        "lr": options.reactivation.lr,
        "reri_data": options.reri_data,
        "bn": bn,
        "direct": options.direct,
    }


class _Moved:
    """In-tree batches on the model's device and in its dtype, one at a time."""

    def __init__(self, batches: Iterable[Any], like: torch.Tensor) -> None:
        self._batches, self._like = batches, like

    def __iter__(self) -> Any:
        return (batch.to(self._like.device, self._like.dtype) for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]


def _data(fusion: FusionModel, batches: Iterable[Any] | None, options: Options) -> tuple[Any, str, bool | None]:
    """What to score on, in words what it is, and whether it is synthetic (None: the caller's own, nobody knows)."""
    config = getattr(fusion.model, "config", None)
    if batches is None:
        batches = _synthetic_batches(fusion, options, config)
    description = str(getattr(batches, "description", "batches given by the caller"))
    synthetic = getattr(batches, "synthetic", None)
    if iter(batches) is batches:
        return batches, description, synthetic  # Batches refuses it, with the reason
    from fastalter.data.batch import Batch

    first = next(iter(batches), None)
    if isinstance(first, Batch):
        weight = next(p for p in fusion.model.parameters() if p.is_floating_point())
        return _Moved(batches, weight), description, synthetic
    return batches, description, synthetic


def _synthetic_batches(fusion: FusionModel, options: Options, config: Any) -> Iterable[Any]:
    from fastalter.models.config import BEVFusionConfig

    if not isinstance(config, BEVFusionConfig):
        raise ScoringError(
            f"{type(fusion.model).__name__}: batches=None works for in-tree models only; pass your own batches"
        )
    from fastalter.data import load

    count = options.reactivation.batches
    loaded: Iterable[Any] = load("synthetic", batches=count, batch_size=2, config=config, seed=options.seed)
    return loaded


def _progress(progress: bool | Progress) -> AbstractContextManager[Progress]:
    if callable(progress):
        return nullcontext(progress)
    from fastalter.report.progress import progress_bars

    return progress_bars(progress)
