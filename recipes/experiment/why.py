"""python -m recipes.experiment.why: which weights does subtracting ReRI take away? Scores alone, nothing is trained.

The trained regime's network and scored batches of seed 0. For every S that subtracts something from DeCI: of the
weights that DeCI alone would keep, how many does S keep, how much of DeCI's sum is in what it keeps, and how many of
those have less DeCI than the median weight. Likewise for channel groups.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from bench.bulk import provenance
from fastalter.artifacts import atomic_path
from fastalter.comparison import Method, Study
from fastalter.criteria import Scores
from fastalter.scoring import score_model
from recipes.experiment.__main__ import RESULTS
from recipes.experiment.methods import CONTROLS, MAIN
from recipes.experiment.page import PAGE, write_block
from recipes.experiment.regimes import study, trained, use_one_thread
from recipes.tiny_checkpoint import WORK, begin

BEGIN, END = "<!-- why: begin -->", "<!-- why: end -->"
METHODS = {method.name: method for method in [*MAIN, *CONTROLS]}
BETAS = (-1.0, 0.1, 1.0)
KEPT = {"weight": 0.1, "channel": 0.5}
"""The share that stays."""


def main(
    work: Annotated[Path, typer.Option(help="Where the data is, or is made.")] = WORK,
    out: Annotated[Path, typer.Option(help="The JSON file.")] = RESULTS / "why.json",
    page: Annotated[Path, typer.Option(help="The page whose block is written anew.")] = PAGE,
) -> None:
    """Two minutes of one thread."""
    use_one_thread()
    begin(work)
    common = study(work / "data")
    rows = []
    for granularity in KEPT:
        own = scores(METHODS["altermoma"], common, granularity, keep_terms=True)
        deci, reri = own.terms["deci"], own.terms["reri"]
        found = {f"DeCI {-beta:+g} ReRI": deci - beta * reri for beta in BETAS}
        for name in ("paper lr 0", "deci of other batches for reri"):
            found[name] = scores(METHODS[name], common, granularity).flat
        for name, score in found.items():
            rows.append({"granularity": granularity, "method": name, **against_deci(deci, score, granularity)})
            print(rows[-1], flush=True)
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    write_block(page, BEGIN, END, table(rows))


def scores(method: Method, common: Study, granularity: str, keep_terms: bool = False) -> Scores:
    """Of the trained network on the batches of seed 0."""
    regime = trained()
    assert method.criterion is not None
    return score_model(
        regime.start(0),
        common.scored(0, regime),
        method=method.criterion,
        settings=method.settings,
        granularity=granularity,  # type: ignore[arg-type]
        keep_terms=keep_terms,
        progress=False,
        **method.arguments,
    )


def against_deci(deci: Tensor, score: Tensor, granularity: str) -> dict[str, float]:
    """What the highest `score` [N] keep of what DeCI [N], each branch over its own sum, holds to be important."""
    deci, score = deci.double(), score.double()
    count = round(KEPT[granularity] * deci.numel())
    best, kept = _highest(deci, count), _highest(score, count)
    return {
        "as_deci": float((best & kept).sum() / count),
        "deci_sum": float(deci[kept].sum() / deci.sum()),
        "deci_sum_of_deci": float(deci[best].sum() / deci.sum()),
        "below_median": float((deci[kept] < deci.median()).double().mean()),
        "negative_of_best": float((score[best] < 0).double().mean()),
    }


def _highest(score: Tensor, count: int) -> Tensor:
    kept = torch.zeros(score.numel(), dtype=torch.bool)
    kept[score.argsort(descending=True, stable=True)[:count]] = True
    return kept


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, percent."""
    lines = [
        "| of | S | keeps of DeCI's choice | of DeCI's sum | (DeCI itself) | below its median | choice with S < 0 |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        names = ("as_deci", "deci_sum", "deci_sum_of_deci", "below_median", "negative_of_best")
        share = f"{row['granularity']}s, {100 * KEPT[row['granularity']]:g} % stay"
        lines.append(f"| {share} | {row['method']} | {' | '.join(f'{100 * row[name]:.0f} %' for name in names)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
