"""Criteria: each takes a `Problem` and returns a `Ranking`. A new one is a module here and a line in `CRITERIA`."""

from fastalter.criteria.altermoma import altermoma
from fastalter.criteria.deci import deci
from fastalter.criteria.imp import imp
from fastalter.criteria.magnitude import magnitude
from fastalter.criteria.modalfisher import modalfisher
from fastalter.criteria.problem import Criterion, Options, Problem, Ranking, for_one_ratio, is_for_one_ratio
from fastalter.criteria.prospr import prospr
from fastalter.criteria.random import random
from fastalter.criteria.scores import Scores
from fastalter.criteria.snip import snip
from fastalter.criteria.synflow import synflow

CRITERIA: dict[str, Criterion] = {
    "altermoma": altermoma,
    "deci": deci,
    "snip": snip,
    "magnitude": magnitude,
    "random": random,
    "synflow": synflow,
    "prospr": prospr,
    "imp": imp,
    "modalfisher": modalfisher,
}

__all__ = [
    "CRITERIA",
    "Criterion",
    "Options",
    "Problem",
    "Ranking",
    "Scores",
    "for_one_ratio",
    "is_for_one_ratio",
    *CRITERIA,
]
