"""The data D of a scoring run: walked several times, so it must be the same each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from fastalter.errors import DataError
from fastalter.fusion.tree import tensors


class Batches:
    """Walks a re-iterable of batches; a second walk that meets other data is an error, not a wrong score.

    Raises:
        DataError: an iterator that can be walked once only, no batches, or other batches on a later walk.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        if iter(batches) is batches:
            raise DataError(
                "batches: an iterator can be walked only once; pass a list or a DataLoader (without shuffling)"
            )
        self._batches = batches
        self._seen: list[int] = []
        self._length: int | None = None

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for index, batch in enumerate(self._batches):
            self._check(index, batch)
            yield index, batch

    def first(self, count: int) -> Iterator[tuple[int, Any]]:
        """The first `count` batches, in order."""
        yield from islice(self, count)

    def last_of(self, count: int) -> tuple[int, Any]:
        """D_B: the last of the first `count` batches."""
        return list(self.first(count))[-1]

    def __len__(self) -> int:
        if self._length is None:
            try:
                self._length = len(self._batches)  # type: ignore[arg-type]
            except TypeError:
                self._length = sum(1 for _ in self._batches)
        return self._length

    def _check(self, index: int, batch: Any) -> None:
        mark = fingerprint(batch)
        if index == len(self._seen):
            self._seen.append(mark)
        elif self._seen[index] != mark:
            raise DataError(
                f"batches: batch {index} is not what it was on the first walk; turn shuffling and augmentation off"
            )


def fingerprint(batch: Any) -> int:
    """Shapes and a few values of every tensor: cheap, and different for different data in all likelihood."""
    marks: list[object] = []
    for tensor in tensors(batch):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // 16)
        values = [repr(value) for value in flat[::step].tolist()]  # repr: NaN equals NaN
        marks.append((tuple(tensor.shape), tensor.dtype, *values))
    return hash(tuple(marks))
