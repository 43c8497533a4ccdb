"""Forward and backward passes under modality masks: the shared form, and the plain one that it is judged by.

Both answer two questions with gradients by parameter name:

    at_theta_init(index, batch)       for nothing masked, then for each branch masked:  dL/dtheta at theta_init
    masked(branch, index, batch)      dL/dtheta with one branch masked, at the parameters as they are now
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastalter.altermoma.clock import Clock
from fastalter.errors import ScoringError
from fastalter.fusion.adapt import FusionModel
from fastalter.fusion.fuse_block import BrokenBlock
from fastalter.fusion.split_conv import SplitConv
from fastalter.fusion.stubs import Outputs, branch_outputs, branch_zeros, recorded, replayed
from fastalter.fusion.tree import tensors
from fastalter.fusion.weights import Weight

Gradients = dict[str, Tensor]
Stage = str | None
"""The masked branch, or None where nothing is masked."""


class Passes(Protocol):
    """What Algorithm 1 asks of a network."""

    def at_theta_init(self, index: int, batch: Any) -> Iterator[tuple[Stage, Gradients]]:
        """Gradients at theta_init: nothing masked first, then each branch masked in turn."""

    def masked(self, branch: str, index: int, batch: Any) -> Gradients:
        """Gradients of all that is not masked, at the current parameters."""


class Backward:
    """Differentiates a loss without touching `.grad` or running hooks that an optimiser left on the parameters.

    Stages of `None` have nothing masked: with `loss` and `gradients` a criterion of any kind gets its plain gradients.
    """

    def __init__(self, fusion: FusionModel, weights: Sequence[Weight], clock: Clock, seed: int) -> None:
        self.fusion = fusion
        self.clock = clock
        self.seed = seed
        self.trained: dict[str, Weight] = {w.name: w for w in weights if w.parameter.requires_grad}

    def names(self, masked: Stage, *, all_branches: bool = False) -> list[str]:
        """Parameters that a stage differentiates: all but the masked branch's."""
        return [name for name, w in self.trained.items() if all_branches or w.branch != masked]

    def loss(self, index: int, batch: Any, stage: Stage) -> Tensor:
        """The loss of batch number `index`, graph and all; `stage` is for the message of a ScoringError."""
        # Whatever randomness a model keeps in spite of scoring_mode is at least the same in every pass over this batch.
        torch.manual_seed(self.seed + index)
        try:
            with self.clock.network(), torch.enable_grad():
                return self.fusion.total_loss(batch)
        except ScoringError as error:
            where = f"with {stage} masked" if stage else "with nothing masked"
            raise ScoringError(f"batch {index}, {where}: {error}") from error

    def gradients(self, loss: Tensor, names: list[str], *, retain_graph: bool = False) -> Gradients:
        """dL/dtheta of the named parameters that the loss depends on."""
        return self.differentiate(loss, {n: self.trained[n].parameter for n in names}, retain_graph=retain_graph)

    def differentiate(
        self, loss: Tensor, values: Mapping[str, Tensor], *, retain_graph: bool = False, create_graph: bool = False
    ) -> Gradients:
        """The loss's gradients by any tensors that it was computed from; those it does not depend on are left out."""
        try:
            with self.clock.network():
                grads = torch.autograd.grad(
                    loss,
                    list(values.values()),
                    retain_graph=retain_graph or create_graph,
                    create_graph=create_graph,
                    allow_unused=True,
                )
        except RuntimeError as error:
            if "Checkpointing is not compatible" in str(error):
                raise ScoringError(
                    "the model checkpoints activations in the reentrant form; "
                    "build it with use_reentrant=False (with_cp=False in mmdet)"
                ) from error
            raise
        return {name: grad for name, grad in zip(values, grads, strict=True) if grad is not None}


class SharedPasses:
    """The masked backbone is never run, one forward of each backbone serves every mask at theta_init, and the fuser's
    convolution is computed once per branch (docs/method.md, savings 1 to 3)."""

    def __init__(self, fusion: FusionModel, weights: Sequence[Weight], clock: Clock, seed: int = 0) -> None:
        self.fusion = fusion
        self._backward = Backward(fusion, weights, clock, seed)
        self._split = SplitConv(fusion)
        self._zeros: dict[int, dict[str, Outputs]] = {}

    def at_theta_init(self, index: int, batch: Any) -> Iterator[tuple[Stage, Gradients]]:
        try:
            record, loss = self._record(index, batch)
        except BrokenBlock:  # only ever in the first pass
            record, loss = self._record(index, batch)
        self._zeros[index] = {branch: branch_zeros(self.fusion, record, branch) for branch in self.fusion.branches}
        yield None, self._backward.gradients(loss, self._backward.names(None), retain_graph=True)
        del loss  # the fusion part's graph goes; the backbones' stay, held by the record
        for branch in self.fusion.branches:
            yield branch, self._masked_replay(record, branch, index, batch)
        self._split.forget()

    def _record(self, index: int, batch: Any) -> tuple[Outputs, Tensor]:
        """One pass with nothing masked: what every branch returned, and the loss."""
        with recorded(self.fusion) as record, self._split.recording(record):
            return record, self._backward.loss(index, batch, None)

    def masked(self, branch: str, index: int, batch: Any) -> Gradients:
        with replayed(self.fusion, self._zeros[index][branch]), self._split.masked(branch, reuse=False):
            loss = self._backward.loss(index, batch, branch)
        return self._backward.gradients(loss, self._backward.names(branch))

    def _masked_replay(self, record: Outputs, masked: str, index: int, batch: Any) -> Gradients:
        outputs = dict(self._zeros[index][masked])
        for branch in self.fusion.branches:
            if branch != masked:
                outputs |= branch_outputs(self.fusion, record, branch)
        with replayed(self.fusion, outputs), self._split.masked(masked, reuse=True):
            loss = self._backward.loss(index, batch, masked)
        # Retained, because with three branches or more the next mask walks the same backbone graphs again.
        return self._backward.gradients(loss, self._backward.names(masked), retain_graph=True)


class DirectPasses:
    """The plain form: multiply the masked branch's parameters by zero and run everything, forward and backward."""

    def __init__(self, fusion: FusionModel, weights: Sequence[Weight], clock: Clock, seed: int = 0) -> None:
        self.fusion = fusion
        self._backward = Backward(fusion, weights, clock, seed)
        self._learned = [w for w in weights if w.learned]

    def at_theta_init(self, index: int, batch: Any) -> Iterator[tuple[Stage, Gradients]]:
        loss = self._backward.loss(index, batch, None)
        yield None, self._backward.gradients(loss, self._backward.names(None))
        for branch in self.fusion.branches:
            yield branch, self.masked(branch, index, batch)

    def masked(self, branch: str, index: int, batch: Any) -> Gradients:
        parameters = [w.parameter for w in self._learned if w.branch == branch]
        with _zeroed(parameters):
            with recorded(self.fusion) as record:
                loss = self._backward.loss(index, batch, branch)
            self._check_zero(record, branch)
            gradients = self._backward.gradients(loss, self._backward.names(branch, all_branches=True))
        # dL/dtheta = mu * (...) for a masked parameter: zero, so it neither moves nor is scored.
        kept = set(self._backward.names(branch))
        return {name: grad for name, grad in gradients.items() if name in kept}

    def _check_zero(self, record: Outputs, branch: str) -> None:
        outlet = self.fusion.outlets[branch]
        features = [t for t in tensors(record[outlet]) if t.is_floating_point()]
        if any(bool((feature != 0).any()) for feature in features):
            raise ScoringError(
                f"{outlet}: with every parameter of branch {branch!r} at zero it does not return zero; "
                "choose as outlet a module that maps zero weights to a zero feature"
            )


class _zeroed:
    """Parameters times zero for the length of a block, then the very same values again."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters

    def __enter__(self) -> None:
        self._values = [p.detach().clone() for p in self._parameters]
        for parameter in self._parameters:
            parameter.data.zero_()  # .data: autograd's saved tensors of this pass must see no version change at exit

    def __exit__(self, *_: object) -> None:
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.data.copy_(value)
