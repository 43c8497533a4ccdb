"""Who makes the mask, and by which rule.

All get the same score tensors and the same k. Rules that end in a threshold give one bool tensor per weight, which is
the thriftiest form their authors' code could take (most keep float masks); torch.nn.utils.prune and nncf do all that
their own calls do. None of them has a bit-packed mask, so ours has one thing more to do and less to write.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bench.peers.jobs import RATIO, Job
from fastalter.criteria.scores import Scores
from fastalter.masks import Mask, keep_count, select

NOT_COMPARED = {
    "torch-pruning": "structured only: it removes channels and has no mask per weight",
}


@dataclass
class Task:
    """Keep k of these scores; `job` builds the network for those who need its modules."""

    job: Job
    scores: Scores
    keep: int

    @staticmethod
    def of(job: Job, scores: Scores) -> Task:
        return Task(job, scores, keep_count(scores.layout.size, RATIO))

    @property
    def tensors(self) -> list[Tensor]:
        """The scores weight by weight, as the peers take them."""
        return [self.scores[name] for name in self.scores]


@dataclass
class Contender:
    """One way to the mask.

    make    what is measured; returns the mask in whatever form it comes
    flags   that mask as bool [N] in arena order
    reset   undoes `make`, for the next round
    ranked  the scores [N] that it ranks, if it cannot rank those it is given
    """

    make: Callable[[], Any]
    flags: Callable[[Any], Tensor]
    reset: Callable[[], object] = lambda: None
    ranked: Tensor | None = None


# ---- fastalter ------------------------------------------------------------------------------------------------------


def unpacked(mask: Mask) -> Tensor:
    flags = np.unpackbits(mask.bits.numpy(), count=mask.layout.size, bitorder="little")
    return torch.from_numpy(flags.astype(bool))


def ours_select(task: Task) -> Contender:
    scores = task.scores
    return Contender(lambda: select(scores.flat, scores.layout, task.keep, ratio=RATIO), unpacked)


def ours_scores(task: Task) -> Contender:
    return Contender(lambda: task.scores.mask(RATIO), unpacked)


def ours_copied(task: Task) -> Contender:
    """What it costs someone whose scores are not one flat buffer yet."""
    tensors, layout = task.tensors, task.scores.layout
    return Contender(lambda: select(joined(tensors), layout, task.keep, ratio=RATIO), unpacked)


# ---- thresholds -----------------------------------------------------------------------------------------------------


def joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def by_kthvalue(task: Task) -> Contender:
    """SynFlow's rule: what is above the (N - k)-th smallest stays; fewer than k where scores tie with it."""
    tensors, pruned = task.tensors, task.scores.layout.size - task.keep

    def make() -> list[Tensor]:
        threshold = torch.kthvalue(joined(tensors), pruned).values
        return [tensor > threshold for tensor in tensors]

    return Contender(make, joined)


def by_flat_kthvalue(task: Task) -> Contender:
    """The same, spared the concatenation: the scores are one flat buffer, as ours are."""
    flat, pruned = task.scores.flat, task.scores.layout.size - task.keep
    return Contender(lambda: flat > torch.kthvalue(flat, pruned).values, lambda flags: flags)


def by_topk(task: Task) -> Contender:
    """ProsPr's rule: what reaches the k-th largest stays; more than k where scores tie with it."""
    tensors = task.tensors

    def make() -> list[Tensor]:
        threshold = torch.topk(joined(tensors), task.keep, sorted=True).values[-1]
        return [tensor >= threshold for tensor in tensors]

    return Contender(make, joined)


def by_sort(task: Task) -> Contender:
    """The same threshold, read off the sorted scores."""
    tensors = task.tensors

    def make() -> list[Tensor]:
        threshold = torch.sort(joined(tensors), descending=True).values[task.keep - 1]
        return [tensor >= threshold for tensor in tensors]

    return Contender(make, joined)


def by_numpy(task: Task) -> Contender:
    """The same threshold by numpy's partition, in place on the concatenation."""
    arrays, pruned = [tensor.numpy() for tensor in task.tensors], task.scores.layout.size - task.keep

    def make() -> list[Any]:
        flat = np.concatenate([array.reshape(-1) for array in arrays])
        flat.partition(pruned)
        return [array >= flat[pruned] for array in arrays]

    return Contender(make, lambda flags: joined([torch.from_numpy(f) for f in flags]))


# ---- libraries ------------------------------------------------------------------------------------------------------


def by_torch_prune(task: Task) -> Contender:
    """torch.nn.utils.prune: also writes a float mask and a masked copy of every weight into the network."""
    model = task.job.build()[0]
    places = [owner(model, name) for name in task.scores]
    importance = {place: task.scores[name] for place, name in zip(places, task.scores, strict=True)}
    pruned = task.scores.layout.size - task.keep  # the lowest |score|; it knows no signed scores

    def make() -> None:
        prune.global_unstructured(places, prune.L1Unstructured, importance_scores=importance, amount=pruned)

    def flags(_: None) -> Tensor:
        return joined([getattr(module, f"{name}_mask") == 1 for module, name in places])

    def reset() -> None:
        for module, name in places:
            prune.remove(module, name)

    return Contender(make, flags, reset)


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


def by_nncf(task: Task) -> Contender:
    """nncf's global magnitude mode, without tracing the network: the list of weights is given.

    It ranks |w| / ||w||_2 and takes no scores, so the scores stand in for the weights and its kept set is held against
    ours on the ranking it makes. It prunes int((N - 1) * ratio) + 1 weights: the ratio is chosen to make that N - k.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report every use
    try:
        from nncf import PruneMode
        from nncf.torch.function_hook.hook_storage import HookStorage
        from nncf.torch.function_hook.pruning.magnitude.algo import apply_magnitude_pruning, get_pruned_modules
        from nncf.torch.function_hook.wrapper import ATR_HOOK_STORAGE, wrap_model
    except ImportError as error:
        raise RuntimeError(
            f"nncf cannot be imported ({error}): pip install -c constraints.txt -e '.[peers]'"
        ) from error

    model = task.job.build()[0]
    names, size = list(task.scores), task.scores.layout.size
    for name in names:
        module, last = owner(model, name)
        getattr(module, last).data = task.scores[name]
    model = wrap_model(model)
    ratio = (size - task.keep - 0.5) / (size - 1)

    def make() -> None:
        apply_magnitude_pruning(model, set(names), PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio)

    def flags(_: None) -> Tensor:
        hooks = get_pruned_modules(model)
        return joined([hooks[name].binary_mask for name in names])

    def reset() -> None:
        delattr(model, ATR_HOOK_STORAGE)
        model.add_module(ATR_HOOK_STORAGE, HookStorage())

    return Contender(make, flags, reset, joined([score.abs() / score.norm(2) for score in task.tensors]))


OURS = {
    "select": ours_select,
    "scores.mask": ours_scores,
    "cat+select": ours_copied,
}
PEERS = {
    "kthvalue": by_kthvalue,
    "flat-kthvalue": by_flat_kthvalue,
    "topk": by_topk,
    "sort": by_sort,
    "numpy": by_numpy,
    "torch-prune": by_torch_prune,
    "nncf": by_nncf,
}
CONTENDERS: dict[str, Callable[[Task], Contender]] = {**OURS, **PEERS}
WHAT = {
    "select": "fastalter: masks.select on the arena",
    "scores.mask": "fastalter: Scores.mask",
    "cat+select": "fastalter: torch.cat, then masks.select",
    "kthvalue": "torch.cat + kthvalue (SynFlow's rule)",
    "flat-kthvalue": "kthvalue on the arena, no torch.cat",
    "topk": "torch.cat + topk (ProsPr's rule)",
    "sort": "torch.cat + sort",
    "numpy": "numpy concatenate + partition",
    "torch-prune": "torch.nn.utils.prune.global_unstructured",
    "nncf": "nncf, global magnitude",
}
