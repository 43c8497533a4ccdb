"""What a comparison is made of: methods, regimes, the data of each step, and the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from torch import nn

from fastalter.criteria import CRITERIA, Criterion, is_for_one_ratio
from fastalter.data import Batch
from fastalter.data.loading import prepare_options
from fastalter.data.nuscenes import NuScenesFrames
from fastalter.data.prepare import PrepareOptions
from fastalter.data.views import Batches
from fastalter.evaluation.model import config_of, frames_for
from fastalter.structure.budget import Budget
from fastalter.training import TrainOptions


@dataclass(frozen=True)
class Method:
    """A criterion with its settings, under the name that tables and files show.

    criterion   a name of `criteria.CRITERIA`, or a function of one's own; None prunes nothing (the dense network)
    arguments   of `score_model`: alpha, beta, reri_data, bn, reactivation
    settings    of the criterion itself
    """

    name: str
    criterion: str | Criterion | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def per_ratio(self) -> bool:
        """Its scores are good for one ratio alone, so they are not shared between ratios."""
        criterion = CRITERIA[self.criterion] if isinstance(self.criterion, str) else self.criterion
        return criterion is not None and is_for_one_ratio(criterion)

    def describe(self) -> dict[str, Any]:
        """Plain form, which a cached cell is recognised by."""
        criterion = self.criterion if isinstance(self.criterion, str) else getattr(self.criterion, "__name__", None)
        return {
            "criterion": criterion,
            "arguments": {key: _plain(value) for key, value in sorted(self.arguments.items())},
            "settings": dict(sorted(self.settings.items())),
        }


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


DENSE = Method("dense", None)


@dataclass(frozen=True)
class Regime:
    """When pruning happens, and the training that follows.

    start     seed -> theta_init, on the CPU
    origin    what `start` reads, by name: SHA-256 of each file
    before    whether the network detects anything before it is trained (a fresh fusion head does not)
    options   of the training after pruning; its seed is the cell's
    budget    None: single weights become zero, the ratio is one of weights. "channels", "parameters" or "flops": whole
              channel groups leave the network, which is compacted, and the ratio is one of these
    """

    name: str
    start: Callable[[int], nn.Module]
    origin: Mapping[str, str]
    options: TrainOptions
    batch_size: int
    before: bool = True
    budget: Budget | None = None


@dataclass(frozen=True)
class Judge:
    """The frames that the official metric runs on, and what is called a dropped sensor there.

    cache_bytes   how much of the prepared frames may stay in memory, from one evaluation to the next
    """

    frames: NuScenesFrames
    batch_size: int = 8
    drops: tuple[str, ...] = ()
    cache_bytes: int = 0
    _prepared: dict[PrepareOptions, Batches] = field(default_factory=dict, init=False, compare=False, repr=False)

    def batches(self, model: nn.Module) -> Batches:
        """All frames, prepared for an in-tree model."""
        config = config_of(model)
        options = prepare_options(config)
        if options not in self._prepared:
            self._prepared[options] = frames_for(
                config, self.frames, batch_size=self.batch_size, cache_bytes=self.cache_bytes
            )
        return self._prepared[options]


@dataclass(frozen=True)
class Study:
    """Everything that all cells share.

    scored   seed -> the batches D that every method is given
    trained  seed -> (step -> batch), for batch norm's statistics and for the training
    """

    scored: Callable[[int, Regime], Any]
    trained: Callable[[int, Regime], Callable[[int], Batch]]
    judge: Judge
    data: str
    settle: int = 10
    """Batches over which batch norm's statistics are measured anew before each evaluation."""
