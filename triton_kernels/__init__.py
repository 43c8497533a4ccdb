"""Triton kernels, one family a file, each with its kernels, launchers (launch_<op>) and ahead-of-time budgets.

The folder installs as `fastalter.triton_kernels`, because a top-level `triton_kernels` is Triton's own package.
Importing this package imports no Triton: a launcher's module is imported when the launcher is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from fastalter.triton_kernels.budget import Budget, Specialisation

__all__ = ["MODULE_OF", "Budget", "Specialisation", "specialisations"]

MODULE_OF = {
    **{op: op for op in ("indicator_sums", "alter_score", "kth_value", "make_mask", "apply_mask", "channel_sum")},
    **{f"masked_linear{part}": "masked_linear" for part in ("", "_dgrad", "_wgrad")},
    **{f"masked_conv2d{part}": "masked_conv2d" for part in ("", "_dgrad", "_wgrad")},
    "masked_fuse": "masked_fuse",
    **dict.fromkeys(("masked_fuse_grad", "masked_fuse_norm", "masked_fuse_norm_backward"), "masked_fuse_norm"),
}
LAUNCHERS = {f"launch_{op}": module for op, module in MODULE_OF.items()}


def __getattr__(name: str) -> Any:
    if name not in LAUNCHERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{LAUNCHERS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *LAUNCHERS])


def specialisations() -> list[Specialisation]:
    """Every compiled form of every kernel, with its budget."""
    modules = [importlib.import_module(f"{__name__}.{module}") for module in dict.fromkeys(MODULE_OF.values())]
    return [specialisation for module in modules for specialisation in module.SPECIALISATIONS]
