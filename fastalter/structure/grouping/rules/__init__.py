"""What operations do to channel labels, one family a module.

moves      elements change place: the operation runs on the labels as it does on the data
pointwise  elements meet: their channels are one
windows    elements of one channel are summed up over space, tokens or windows
products   activations are multiplied as matrices: attention
functions  layers, called as functions with their parameters
modules    layers that are looked at from outside: attention modules, sparse convolutions

A rule of the first four takes (trace, func, args, kwargs, value), where `value` is the plain result, and returns labels
for it (a list, where it is several tensors). To teach the tracer an operation, add it to its family.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastalter.structure.grouping.rules import functions, moves, pointwise, products, windows
from fastalter.structure.grouping.rules.family import Rule, arguments, first_labelled
from fastalter.structure.grouping.rules.lit import is_lit
from fastalter.structure.grouping.trace import Labelled, Trace, plain

_RULES: dict[Any, Rule] = {**moves.RULES, **windows.RULES, **products.RULES}


def apply(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on labelled tensors, and label what it returns."""
    trace = first_labelled(args, kwargs).owner
    if func in moves.IN_PLACE:
        return moves.IN_PLACE[func](trace, func, args, kwargs)
    value = func(*plain(args), **plain(kwargs))
    if trace.suspended:
        return value
    if func.overloadpacket in moves.CANVASES:
        return functions.canvas(trace, value)
    rule = _RULES.get(func.overloadpacket) or pointwise.rule_for(func)
    if rule is None:
        return _unknown(trace, func, args, kwargs, value)
    lit = is_lit(rule, func, args, kwargs)
    labels = rule(trace, func, args, kwargs, value)
    if func._schema.is_mutable and value is plain(args[0]):
        target = args[0]
        if isinstance(target, Labelled):
            target.labels, target.lit = labels, lit
            return target
    return _attach(trace, value, labels, lit)


def _attach(trace: Trace, value: Any, labels: Any, lit: bool) -> Any:
    if isinstance(value, (list, tuple)):
        several = labels if isinstance(labels, (list, tuple)) else [labels]
        several = [*several, *[None] * (len(value) - len(several))]
        return type(value)(_attach(trace, v, lab, lit) for v, lab in zip(value, several, strict=True))
    if not isinstance(value, Tensor) or labels is None:
        return value
    return trace.labelled(value, labels, lit)


def _unknown(trace: Trace, func: Any, args: Any, kwargs: Any, value: Any) -> Any:
    for tensor in arguments(args, kwargs):
        if isinstance(tensor, Labelled):
            trace.pin(trace.settled(tensor.labels), f"no rule says what {func.overloadpacket} does to channels")
    return value
