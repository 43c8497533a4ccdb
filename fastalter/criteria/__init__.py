"""Criteria: each takes a `Problem` and returns a `Ranking`. A new one is a module here and a line in `CRITERIA`."""

from fastalter.criteria.altermoma import altermoma
from fastalter.criteria.problem import Criterion, Options, Problem, Ranking
from fastalter.criteria.scores import Scores

CRITERIA: dict[str, Criterion] = {"altermoma": altermoma}

__all__ = ["CRITERIA", "Criterion", "Options", "Problem", "Ranking", "Scores", "altermoma"]
