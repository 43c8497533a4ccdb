"""python -m bench.reactivation: does ReRI measure reactivation, or the noise of the batches?

The embedded checkpoint on synthetic samples. For either form of ReRI (reri_data), several learning rates and B:

repeats      Spearman's rank correlation of ReRI from one set of batches with ReRI from another set: what is not noise
w/o theta    the same with |theta| divided out, which both sets share
as lr 0      its correlation with ReRI of the same batches at lr = 0, where nothing is reactivated ("paper": all of that
             is the last batch against the mean of all; "paired": exactly zero, so there is nothing to correlate)
as DeCI      its correlation with DeCI of the same batches
ReRI / DeCI  their sums

Results go to bench/results/reactivation.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

import fastalter
from bench.bulk import provenance
from fastalter import data
from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint

RESULT = Path(__file__).parent / "results" / "reactivation.json"
RATES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
SEEDS = (0, 1)
"""Of the two sets of batches."""


def score(model: torch.nn.Module, batches: list[Any], term: str, reri_data: str, lr: float) -> fastalter.Scores:
    """Normalised DeCI (alpha = 1, beta = 0) or ReRI (alpha = 0, beta = -1) alone."""
    return fastalter.score_model(
        model,
        batches,
        reactivation=fastalter.Reactivation(len(batches), lr),
        alpha=float(term == "deci"),
        beta=-float(term == "reri"),
        reri_data=reri_data,  # type: ignore[arg-type]
        progress=False,
    )


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Spearman's rho; None where one of them is constant."""
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return None
    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def measure(batches: int, batch_size: int) -> list[dict[str, Any]]:
    """A row per form, rate and branch."""
    loaded = load_checkpoint(EMBEDDED)
    sets = [
        list(data.load("synthetic", config=loaded.config, batches=batches, batch_size=batch_size, seed=seed))
        for seed in SEEDS
    ]
    deci = [score(loaded.model, chosen, "deci", "paired", 0.0) for chosen in sets]  # the same for every rate and form
    weights = {entry.name: loaded.model.get_parameter(entry.name).detach() for entry in deci[0].layout.entries}
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()]).clamp(min=1e-30)
    theta = {branch: flat[deci[0].layout.range(branch)] for branch in deci[0].layout.branches}
    rows = []
    still: dict[str, fastalter.Scores] = {}
    for form, lr in track([(form, lr) for form in ("paired", "paper") for lr in RATES], f"B = {batches}"):
        one, other = (score(loaded.model, chosen, "reri", form, lr) for chosen in sets)
        still.setdefault(form, one)  # the first rate is 0
        sums = one.metadata["sums"]
        for branch in one.layout.branches:
            reri, parts = one.branch(branch), sums[branch]["reri"].values()
            rows.append(
                {
                    "B": batches,
                    "batch_size": batch_size,
                    "reri_data": form,
                    "lr": lr,
                    "branch": branch,
                    "repeats": rank_correlation(reri, other.branch(branch)),
                    "gradient_repeats": rank_correlation(reri / theta[branch], other.branch(branch) / theta[branch]),
                    "as_lr_0": rank_correlation(reri, still[form].branch(branch)),
                    "as_deci": rank_correlation(reri, deci[0].branch(branch)),
                    "deci_repeats": rank_correlation(deci[0].branch(branch), deci[1].branch(branch)),
                    "reri_over_deci": sum(parts) / len(parts) / sums[branch]["deci"],
                }
            )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "B", "reri_data", "lr", "branch", "repeats", "w/o theta", "as lr 0", "as DeCI", "DeCI repeats", "ReRI / DeCI"
    )
    for row in rows:
        numbers = ("repeats", "gradient_repeats", "as_lr_0", "as_deci", "deci_repeats", "reri_over_deci")
        cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in numbers]
        table.add_row(str(row["B"]), row["reri_data"], f"{row['lr']:g}", row["branch"], *cells)
    Console(width=120).print(table)


def main(
    batches: Annotated[list[int], typer.Option(help="B; may be given more than once.")] = [2, 5],  # noqa: B006
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = RESULT,
) -> None:
    rows = [row for count in batches for row in measure(count, batch_size)]
    out.write_text(json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    typer.run(main)
