"""A criterion by name or as a function, and settings that fit its signature."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from fastalter.criteria.problem import Criterion
from fastalter.errors import ScoringError


def criterion_of(method: str | Criterion, known: Mapping[str, Criterion]) -> tuple[str, Criterion]:
    """Name and function of a criterion.

    Raises:
        ScoringError: a name that is not known, or something that cannot be called.
    """
    if isinstance(method, str):
        if method not in known:
            raise ScoringError(f"method {method!r} is not known; there are: {', '.join(known)}")
        return method, known[method]
    if not callable(method):
        raise ScoringError(f"method is {method!r}; give a name ({', '.join(known)}) or a function of a Problem")
    return getattr(method, "__name__", type(method).__name__), method


def bound_settings(name: str, criterion: Criterion, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """All keyword arguments of the criterion: those given, and the defaults of the others.

    A setting with a default of a plain type takes that type alone; a float takes an integer too, and has to be finite.

    Raises:
        ScoringError: a setting that the criterion does not take, takes in another type, or needs and did not get.
    """
    given = dict(settings or {})
    _, *parameters = inspect.signature(criterion).parameters.values()
    takes = {p.name: p.default for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        for setting in given:
            if setting not in takes:
                listed = ", ".join(takes) or "none"
                raise ScoringError(f"method {name!r} has no setting {setting!r}; it takes: {listed}")
    for setting, default in takes.items():
        if setting in given:
            _check_type(name, setting, given[setting], default)
        elif default is inspect.Parameter.empty:
            raise ScoringError(f"method {name!r} needs the setting {setting!r}; pass settings={{{setting!r}: ...}}")
    return {setting: value for setting, value in takes.items() if setting not in given} | given


def described(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON can hold them: functions by their names."""
    plain = (bool, int, float, str, type(None))
    return {key: v if isinstance(v, plain) else getattr(v, "__name__", repr(v)) for key, v in settings.items()}


def _check_type(name: str, setting: str, value: Any, default: Any) -> None:
    kind = type(default)
    if kind not in (bool, int, float, str):
        return
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits:
        wanted = {int: "an integer", float: "a finite number", bool: "True or False", str: "a text"}[kind]
        raise ScoringError(f"method {name!r}: {setting} is {value!r}; give {wanted}, such as {default!r}")
