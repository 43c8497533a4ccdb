"""Registers every op with torch: schema, fake (Meta) implementation, reference, autograd and what Python launches.

Compiled libraries register their own kernels when `backends` loads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastalter.ops import backends, compaction, cpu, fuse, masked, reference, scoring

FAMILIES: tuple[Any, ...] = (scoring, fuse, masked, compaction)
SCHEMAS: dict[str, str] = {op: schema for family in FAMILIES for op, schema in family.SCHEMAS.items()}


def _register() -> object:
    """Define the ops with torch; the returned library must outlive them, for its end takes the registrations along."""
    torch_library: Any = torch.library  # untyped in torch
    library = torch_library.Library("fastalter", "DEF")
    for family in FAMILIES:
        for op, schema in family.SCHEMAS.items():
            library.define(op + schema)
            # "CompositeExplicitAutograd" serves every device that has no kernel of its own.
            library.impl(op, getattr(reference, op), "CompositeExplicitAutograd")
            torch_library.register_fake(f"fastalter::{op}", getattr(family, f"fake_{op}"), lib=library)
        for op, (backward, setup) in getattr(family, "AUTOGRAD", {}).items():
            torch_library.register_autograd(f"fastalter::{op}", backward, setup_context=setup, lib=library)
    library.impl("masked_fuse", cpu.masked_fuse, "CPU")
    triton = backends.BY_NAME["triton"]
    for op in backends.DISPATCHED_TO_TRITON if backends.load(triton) is None else ():
        library.impl(op, _launching(triton, op), "CUDA")
    return library


def _launching(backend: backends.Backend, op: str) -> Callable[..., Any]:
    """Calls the backend's launcher; the module that holds it is imported at the first call."""

    def launch(*arguments: Any, **options: Any) -> Any:
        return backends.launcher(backend, op)(*arguments, **options)

    return launch


_library = _register()
