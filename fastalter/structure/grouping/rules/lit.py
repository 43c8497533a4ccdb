"""What is left of a removed channel: zero, behind most operations, but sigmoid(0) is a half.

Layers do not mind: the masked network has zeros in the columns that would read it. A LayerNorm over channels does: it
goes on counting those that left, as zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastalter.fusion.tree import map_tensors
from fastalter.structure.grouping.rules import moves, pointwise, products, windows
from fastalter.structure.grouping.rules.family import Rule, arguments
from fastalter.structure.grouping.trace import Labelled

_SOMETHING = (0.7, -1.3)
"""What stands for a value that nothing is known of."""
_ALWAYS = {windows.along_one, windows.logsumexp}
"""Rules of operations such as softmax, whose result of zeros is not zero."""
_EITHER = set(products.RULES.values())
"""Products: one factor that is zero is enough."""


def is_lit(rule: Rule, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a removed channel may be something else than zero in the result."""
    given = [tensor for tensor in arguments(args, kwargs) if isinstance(tensor, Labelled)]
    if rule in _ALWAYS:
        return True
    if rule in _EITHER:
        return all(tensor.lit for tensor in given)
    if rule is pointwise.pointwise:
        return _at_zero(func, args, kwargs)
    if rule is moves.padded and len(args) > 2 and args[2]:
        return True
    return any(tensor.lit for tensor in given)


def _at_zero(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the operation makes something of zeros, where removed channels are zero, and anything, elsewhere."""
    try:
        found = func(*map_tensors(args, _stand_in), **map_tensors(kwargs, _stand_in))
    except (RuntimeError, TypeError):
        return True
    result = found[0] if isinstance(found, tuple) else found
    return bool((result != 0).any())


def _stand_in(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.ones(2, dtype=tensor.dtype)
    if isinstance(tensor, Labelled) and not tensor.lit:
        return torch.zeros(2, dtype=tensor.dtype)
    return torch.tensor(_SOMETHING, dtype=tensor.dtype)
