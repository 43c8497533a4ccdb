"""The official metric of a model, with sensors dropped if asked: as a function, and as the job of the evaluate verb."""

from fastalter.evaluation.model import evaluate_model

__all__ = ["evaluate_model"]
