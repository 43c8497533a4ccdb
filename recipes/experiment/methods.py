"""The methods of the table, the controls that stand beside them, and the ablations."""

from __future__ import annotations

from fastalter.altermoma import Reactivation
from fastalter.comparison import Method
from recipes.experiment.controls import other_batches_in_place_of_reri
from recipes.experiment.trials import alternating_fisher, reactivated_fisher

B = 5
LR = 1e-4


def _altermoma(name: str, *, lr: float = LR, batches: int = B, **arguments: object) -> Method:
    reactivation = Reactivation(batches=batches, lr=lr)
    return Method(name, "altermoma", {"reactivation": reactivation, "reri_data": "paired", **arguments})


# Settings that differ from the defaults did best on the tuning scenes (`python -m recipes.experiment.tuning`).
MAIN = [
    Method("modalfisher", "modalfisher"),
    _altermoma("altermoma"),
    _altermoma("altermoma-paper", reri_data="paper"),
    Method("deci", "deci"),
    Method("snip", "snip"),
    Method("prospr", "prospr", settings={"lr": 1e-3}),
    Method("magnitude", "magnitude"),
    Method("imp", "imp", settings={"lr": 1e-3}),
    Method("synflow", "synflow"),
    Method("random", "random"),
]

SECOND = [method for method in MAIN if method.name in ("altermoma-paper", "random", "synflow")]
"""Rows that wait until the others are there."""
FIRST = [method for method in MAIN if method not in SECOND]

CONTROLS = [
    _altermoma("beta -1", beta=-1.0),
    _altermoma("beta 0.1", beta=0.1),
    _altermoma("beta 0.3", beta=0.3),
    _altermoma("paper lr 0", lr=0.0, reri_data="paper"),
    Method("deci of other batches for reri", other_batches_in_place_of_reri),
]

REVERSED = [method for method in CONTROLS if method.name == "beta -1"]
"""ReRI added: the control that came out above DeCI, so it stands where DeCI stands."""

TRAINED_LONGER = [method for method in MAIN if method.name in ("deci", "snip", "prospr", "modalfisher")]
"""`modalfisher` and the nearest to it, for the regime that gives them its training steps as well."""

AT_LOAD_LONGER = [method for method in MAIN if method.name not in ("magnitude", "imp", "synflow", "random")]
"""Those that keep a network at load, for the regime in which it comes to use its cameras."""

STRUCTURED = [method for method in MAIN if method.name in ("altermoma", "deci", "prospr", "magnitude", "modalfisher")]
"""On channels: what the paper's structured table compares, `deci`, which is `altermoma` without ReRI, and our own."""

ABLATIONS = [
    Method("modalfisher share 0", "modalfisher", settings={"share": 0.0}),
    _altermoma("beta 0.5", beta=0.5),
    _altermoma("beta 2", beta=2.0),
    _altermoma("lr 1e-2", lr=1e-2),
    _altermoma("paper lr 1e-2", lr=1e-2, reri_data="paper"),
    _altermoma("frozen norms", bn="frozen"),
    _altermoma("B 2", batches=2),
]

ALTERNATING = [
    Method(f"alternating fisher share {share:g}", alternating_fisher, settings={"share": share}) for share in (0.2, 0.5)
]

TUNED = [
    Method("deci", "deci"),
    Method("snip", "snip"),
    *(Method(f"prospr lr {lr:g}", "prospr", settings={"lr": lr}) for lr in (1e-3, 1e-2, 1e-1)),
    *(Method(f"imp lr {lr:g}", "imp", settings={"lr": lr}) for lr in (1e-5, 1e-4, 1e-3)),
    *(_altermoma(f"altermoma lr {lr:g}", lr=lr) for lr in (1e-5, 1e-4, 1e-3)),
    *(_altermoma(f"altermoma beta {beta:g}", beta=beta) for beta in (0.1, 0.3)),
    *(
        Method(f"modalfisher {what}", "modalfisher", settings=settings)
        for what, settings in {
            "once": {"rounds": 1, "steps": 0, "share": 0.0},
            "no training between": {"steps": 0, "share": 0.0},
            "5 steps of 5e-4": {"steps": 5, "lr": 5e-4, "share": 0.0},
            "share 0": {"share": 0.0},
            "share 0.2": {},
            "share 0.5": {"share": 0.5},
        }.items()
    ),
    *(
        Method(f"reactivated fisher {what}", reactivated_fisher, settings=settings)
        for what, settings in {
            "share 0.2": {},
            "share 0.5": {"share": 0.5},
            "lr 0.01": {"lr": 1e-2},
            "not squared": {"squares": False},
        }.items()
    ),
    *ALTERNATING,
]
"""What `python -m recipes.experiment.tuning` runs: each method's own knob, three values of it or more; and trials."""

TUNED_AT_LOAD = [
    Method("snip", "snip"),
    *(Method(f"modalfisher share {share:g}", "modalfisher", settings={"share": share}) for share in (0.2, 0.5)),
    *ALTERNATING,
]
"""What it runs at load: whether our own's masked states, and steps that are masked too, keep more of the cameras."""
