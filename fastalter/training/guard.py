"""What keeps a step whole: buffers that can be put back, the model's mode, and interrupts that wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Buffers:
    """A copy of a model's buffers: a forward pass in train mode moves running statistics before its loss is known."""

    def __init__(self, model: nn.Module) -> None:
        self._saved = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def restore(self) -> None:
        for module, name, buffer, value in self._saved:
            buffer.copy_(value)
            module._buffers[name] = buffer


@contextmanager
def in_mode(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Train or eval mode in the block; after it each module has its own, a frozen norm too."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(train)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Ctrl-C waits for the end of the block; half an optimizer step could not be taken back."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield  # only the main thread gets KeyboardInterrupt, and only from a Python handler
        return
    caught: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught:
        previous(*caught[0])
