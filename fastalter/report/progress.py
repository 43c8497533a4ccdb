"""Progress bars on stderr, one per stage; silent where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

ProgressFunction = Callable[[str, int, int], None]
"""Called as (stage, done, total): first with done = 0, last with done = total."""


@contextmanager
def progress_bars(enabled: bool = True) -> Iterator[ProgressFunction]:
    """A progress function that draws one bar for each stage it hears of."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield show
