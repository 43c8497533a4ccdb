"""Methods side by side: the same networks, batches, ratios, training and metric for every criterion."""

from fastalter.comparison.cell import Cell, Result, read_results
from fastalter.comparison.run import Work, run_cell, run_dropped
from fastalter.comparison.study import DENSE, Judge, Method, Regime, Study
from fastalter.comparison.table import Paired, Row, paired, rows

__all__ = [
    "DENSE",
    "Cell",
    "Judge",
    "Method",
    "Paired",
    "Regime",
    "Result",
    "Row",
    "Study",
    "Work",
    "paired",
    "read_results",
    "rows",
    "run_cell",
    "run_dropped",
]
