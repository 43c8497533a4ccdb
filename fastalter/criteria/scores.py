"""Scores: one number per prunable weight or channel group, where they come from, and the mask they give."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastalter.altermoma.arena import Layout
from fastalter.artifacts import read_artifact, write_artifact
from fastalter.errors import MaskError
from fastalter.masks import Mask, check_n_m, keep_count, select, select_n_m
from fastalter.structure import store
from fastalter.structure.budget import Budget, select_channels
from fastalter.structure.groups import ChannelGroups

DEFAULT_RATIO = 0.8

MADE_FROM = ("method", "settings", "model", "checkpoint", "data", "synthetic", "seed")
"""What a mask's metadata takes over from its scores'."""


class Scores:
    """Scores of every prunable weight, in arena order.

    scores["name"] is a tensor shaped like the weight; iterating gives the names. `flat` is all of them, [N].
    `metadata` says what made them: method, model, data, seed, settings, branches, seconds per stage, warnings; layers,
    the kind of layer of every weight; for_ratio where they are good for one ratio alone. `terms` is what they are made
    of, each [N] like `flat`, where the run kept it (`score_model(keep_terms=True)`): of altermoma "deci" and "reri",
    S = alpha * deci - beta * reri.

    Scores of channels (`score_model(granularity="channel")`) have `groups`, and one number per group in the place of
    weights: scores["name"] is those of the set of this name.
    """

    def __init__(
        self,
        flat: Tensor,
        layout: Layout,
        metadata: dict[str, Any],
        histogram: Tensor | None = None,
        terms: Mapping[str, Tensor] | None = None,
        groups: ChannelGroups | None = None,
    ) -> None:
        self.flat = flat
        self.layout = layout
        self.metadata = metadata
        self.terms = dict(terms or {})
        self.groups = groups
        self._histogram = histogram

    def __getitem__(self, name: str) -> Tensor:
        return self._of(self.flat, name)

    def _of(self, arena: Tensor, name: str) -> Tensor:
        entry = self.layout[name]
        return arena[entry.offset : entry.offset + entry.size].view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.layout.entries)

    def __len__(self) -> int:
        return len(self.layout.entries)

    def __repr__(self) -> str:
        branches = ", ".join(f"{b} {self.branch(b).numel():,}" for b in self.layout.branches)
        return f"Scores({self.metadata.get('method', '?')}: {self.layout.size:,} {self.unit}; {branches})"

    @property
    def unit(self) -> str:
        """What the scores are of, in the plural."""
        return "weights" if self.groups is None else "channels"

    def branch(self, name: str) -> Tensor:
        """The scores of a branch, 1-D."""
        return self.flat[self.layout.range(name)]

    def mask(
        self,
        ratio: float | None = None,
        *,
        min_keep: float | None = None,
        n_m: tuple[int, int] | None = None,
        budget: Budget | None = None,
        round_to: int | None = None,
    ) -> Mask:
        """Prune the lowest-scored `ratio` of all weights (0.8 if not given) by one global threshold.

        Exactly round((1 - ratio) * N) weights are kept; of those that tie at the threshold, the first in arena order.
        `min_keep` is the least share (below 1) or count that every layer keeps, see `masks.select`. `n_m` asks for N:M
        sparsity in place of the threshold, as (2, 4): two of every four consecutive inputs stay in the layers that can
        have it, everything stays in the others; the ratio is then 1 - n/m. See `masks.select_n_m`.

        Of channel scores the mask is a `ChannelMask`: `budget` says what the ratio is of ("channels", "parameters" or
        "flops"), `round_to` what the channels of a layer are a multiple of, see `structure.budget.select_channels`.

        Raises:
            MaskError: the ratio is not in [0, 1), not the one that the scores are for or not that of `n_m`, the scores
                hold NaN, `min_keep` or `round_to` needs more than stays, no layer can have `n_m`, or an option is not
                for such scores.
        """
        if self.groups is not None:
            return self._channel_mask(self.groups, ratio, min_keep, n_m, budget or "channels", round_to)
        if budget is not None or round_to is not None:
            raise MaskError("budget and round_to are for channels: score the model with granularity='channel'")
        if n_m is not None:
            return self._n_m_mask(ratio, min_keep, n_m)
        ratio = DEFAULT_RATIO if ratio is None else ratio
        keep = keep_count(self.layout.size, ratio)
        self._check_ratio(ratio)
        return select(
            self.flat,
            self.layout,
            keep,
            ratio=ratio,
            min_keep=min_keep,
            metadata=self._made_from(),
            histogram=self._histogram,
        )

    def _channel_mask(
        self,
        groups: ChannelGroups,
        ratio: float | None,
        min_keep: float | None,
        n_m: tuple[int, int] | None,
        budget: Budget,
        round_to: int | None,
    ) -> Mask:
        if n_m is not None:
            raise MaskError("n_m is for single weights: score the model with granularity='weight'")
        ratio = DEFAULT_RATIO if ratio is None else ratio
        self._check_ratio(ratio)
        return select_channels(
            self.flat,
            groups,
            ratio,
            budget=budget,
            min_keep=min_keep,
            round_to=round_to,
            metadata=self._made_from(),
        )

    def _n_m_mask(self, ratio: float | None, min_keep: float | None, n_m: tuple[int, int]) -> Mask:
        n, m = check_n_m(n_m)
        if ratio is not None and not math.isclose(ratio, 1 - n / m):
            raise MaskError(f"ratio is {ratio:g} and n_m={n}:{m} prunes {1 - n / m:g}; leave the ratio out")
        if min_keep is not None:
            raise MaskError(f"min_keep={min_keep}: with n_m every layer keeps its share anyway; leave min_keep out")
        self._check_ratio(1 - n / m)
        return select_n_m(self.flat, self.layout, n_m, self.metadata.get("layers", {}), metadata=self._made_from())

    def _check_ratio(self, ratio: float) -> None:
        only = self.metadata.get("for_ratio")
        if only is not None and not math.isclose(ratio, only):
            raise MaskError(
                f"ratio is {ratio:g}: these scores of {self.metadata.get('method')} are for {only:g} alone; "
                f"score again with ratio={ratio:g}"
            )

    def _made_from(self) -> dict[str, Any]:
        return {key: self.metadata[key] for key in MADE_FROM if key in self.metadata}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with one tensor per weight, "term/weight" for every term; whole or not at all.

        Scores of channels: one tensor per set, and the groups (`structure.store`).
        """
        tensors = {name: self[name] for name in self}
        for term, arena in self.terms.items():
            tensors |= {f"{term}/{name}": self._of(arena, name) for name in self}
        facts = {"terms": list(self.terms), "layout": self.layout.to_json()}
        if self.groups is not None:
            numbers, document = store.pack(self.groups)
            tensors, facts = tensors | numbers, facts | document
        write_artifact(path, "scores", tensors, {**self.metadata, **facts})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Scores:
        """Read what `save` wrote.

        Raises:
            FastalterError: no such file, not a score file, or its tensors do not fit its layout.
        """
        tensors, metadata = read_artifact(path, "scores")
        layout = Layout.from_json(metadata.pop("layout"))

        def arena(prefix: str) -> Tensor:
            for entry in layout.entries:
                name = prefix + entry.name
                if name not in tensors or tuple(tensors[name].shape) != entry.shape:
                    raise MaskError(f"{path}: scores of {name} are missing or misshapen; score the model again")
            return torch.cat([tensors[prefix + entry.name].reshape(-1) for entry in layout.entries])

        terms = {term: arena(f"{term}/") for term in metadata.pop("terms", [])}
        document = metadata.pop(store.KEY, None)
        groups = None if document is None else store.unpack(path, tensors, document, layout)
        return Scores(arena(""), layout, metadata, terms=terms, groups=groups)
