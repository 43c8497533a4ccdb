"""The methods of the table, the controls that stand beside them, and the ablations."""

from __future__ import annotations

from fastalter.altermoma import Reactivation
from fastalter.comparison import Method
from recipes.experiment.controls import other_batches_in_place_of_reri

B = 5
LR = 1e-4


def _altermoma(name: str, *, lr: float = LR, batches: int = B, **arguments: object) -> Method:
    reactivation = Reactivation(batches=batches, lr=lr)
    return Method(name, "altermoma", {"reactivation": reactivation, "reri_data": "paired", **arguments})


MAIN = [
    Method("modalfisher", "modalfisher", per_ratio=True),
    _altermoma("altermoma"),
    _altermoma("altermoma-paper", reri_data="paper"),
    Method("deci", "deci"),
    Method("snip", "snip"),
    Method("prospr", "prospr"),
    Method("magnitude", "magnitude"),
    Method("imp", "imp", per_ratio=True),
    Method("synflow", "synflow", per_ratio=True),
    Method("random", "random"),
]

CONTROLS = [
    _altermoma("beta -1", beta=-1.0),
    _altermoma("beta 0.1", beta=0.1),
    _altermoma("beta 0.3", beta=0.3),
    _altermoma("paper lr 0", lr=0.0, reri_data="paper"),
    Method("deci of other batches for reri", other_batches_in_place_of_reri),
]

ABLATIONS = [
    Method("modalfisher share 0", "modalfisher", settings={"share": 0.0}, per_ratio=True),
    _altermoma("beta 0.5", beta=0.5),
    _altermoma("beta 2", beta=2.0),
    _altermoma("lr 1e-2", lr=1e-2),
    _altermoma("paper lr 1e-2", lr=1e-2, reri_data="paper"),
    _altermoma("frozen norms", bn="frozen"),
    _altermoma("B 2", batches=2),
]
