"""Every block of the zoo once or more, by hand: what of it can be pruned is known, and what stays, with its reason."""

from __future__ import annotations

from typing import Any

from tests.structure.zoo import Part

NUMBERS = "the compacted network failed"
"""The code holds a width in a number of its own, or one that the tracer cannot tell from another number."""

_sigmoid = Part("Plain", {"out": 8, "kernel": 1, "stride": 1, "norm": "batch", "act": "sigmoid"})
_mlp: dict[str, Any] = {"hidden": 6, "positions": False, "act": "gelu"}
HALVES: list[tuple[tuple[Part, ...], str]] = [
    ((_sigmoid, Part("Mlp", {**_mlp, "scale": 1e-4})), "map"),
    ((_sigmoid, Part("Mlp", {**_mlp, "scale": 0.0})), "joined"),
    ((_sigmoid, Part("Mlp", {**_mlp, "scale": 0.0})), "several"),
    ((_sigmoid, Part("PatchMerging", {"out": 6})), "map"),
]
"""Networks where a removed channel is 0.5 of a sigmoid, in a norm over all channels: it counts there. In the first it
counts for little, in the second for few of the outputs: little enough to be overlooked, too much to be equal."""


def _of(kind: str, *variants: dict[str, Any], stays: str | None = None) -> list[tuple[Part, str | None]]:
    return [(Part(kind, settings), stays) for settings in variants]


_plain: dict[str, Any] = {"out": 12, "kernel": 3, "stride": 2, "act": "silu"}
_gate: dict[str, Any] = {"out": 6, "kernel": 3}
_across = ("pool", "softmax", "normalize")

KNOWN: list[tuple[Part, str | None]] = [
    *_of("Plain", *({**_plain, "norm": norm} for norm in ("batch", "group", "instance", "none"))),
    *_of("Plain", {**_plain, "norm": "layer"}, stays="a layer norm that is no nn.LayerNorm over the last axis"),
    *_of("Plain", {**_plain, "norm": "hand"}, stays="mean over channels"),
    *_of("Residual", {"out": 8, "stride": 1, "norm": "batch", "act": "relu"}),
    *_of("Residual", {"out": 12, "stride": 2, "norm": "group", "act": "gelu"}),
    *_of("PreActivation", {"hidden": 6, "act": "sigmoid"}),
    *_of("Dense", {"growth": 3, "layers": 3, "act": "softplus"}),
    *_of("Grouped", {"groups": 3, "each": 2, "act": "relu"}),
    *_of("Depthwise", {"expand": 2, "multiplier": 2, "act": "hardswish"}),
    *_of("SqueezeExcite", *({"hidden": 3, "linear": linear, "act": "silu"} for linear in (True, False))),
    *_of("Inception", {"a": 2, "b": 3, "c": 4, "act": "relu"}),
    *_of("Pyramid", *({"deep": 12, "out": 6, "all_levels": every, "act": "relu"} for every in (True, False))),
    *_of("Up", {"hidden": 6, "out": 12, "norm": "batch", "act": "relu"}),
    *_of("Shuffle", {"groups": 3, "each": 2, "by_hand": True, "act": "relu"}),
    *_of("Shuffle", {"groups": 3, "each": 2, "by_hand": False, "act": "relu"}, stays="channel_shuffle"),
    *_of("PixelShuffle", {"out": 6}),
    *_of("PixelUnshuffle", {"out": 6}),
    *_of("PatchMerging", {"out": 6}),
    *_of("Gate", *({**_gate, "kind": kind} for kind in ("chunk", "split", "glu", "slice"))),
    *_of("Gate", {**_gate, "kind": "numbers"}, stays=NUMBERS),
    *_of("ConvNext", {"expand": 2}),
    *_of("Position", {"act": "sigmoid"}),
    *_of("Shared", {"out": 6, "act": "relu"}),
    *_of("Product", *({"out": 6, "product": product, "act": "sigmoid"} for product in (True, False))),
    *_of("Attention", *({"heads": 3, "head_dim": 4, "fused": fused, "bias": not fused} for fused in (True, False))),
    *_of("Attention", {"heads": 4, "head_dim": 4, "fused": False, "bias": True}, stays=NUMBERS),
    *_of("SplitAttention", {"heads": 3, "head_dim": 4}),
    *_of("TorchAttention", {"heads": 3, "other": 0, "bias": True}),
    *_of("TorchAttention", {"heads": 3, "other": 6, "bias": True}, stays="attention"),
    *_of("Encoder", {"heads": 3, "hidden": 6, "norm_first": True, "gelu": True}),
    *_of("Encoder", {"heads": 3, "hidden": 6, "norm_first": False, "gelu": False}),
    *_of("Mlp", {"hidden": 6, "positions": True, "scale": 1e-4, "act": "gelu"}),
    *_of("GatedMlp", {"hidden": 6}, stays="mean over channels"),
    *_of("Summary", {"heads": 3}, stays=NUMBERS),
    *_of("AcrossChannels", *({"kind": kind, "act": "relu"} for kind in _across), stays="over channels"),
    *_of("Coordinates", {"out": 6, "act": "relu"}),
    *_of("CrossStage", {"half": 3, "act": "relu"}),
    *_of("Selective", {"out": 6, "act": "relu"}, stays="over channels"),
    *_of("Standardised", {"out": 6, "act": "relu"}, stays="no rule says what aten.convolution does"),
    *_of("EinsumAttention", {"heads": 3, "head_dim": 4}),
    *_of("TokenMixing", {"hidden": 6}),
]
