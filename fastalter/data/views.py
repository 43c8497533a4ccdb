"""Batches out of frames: which frame and which augmented view goes where, made when asked for.

A run that wants more samples than there are frames gets augmented views: view 0 of a frame is the frame itself, view
v > 0 a training augmentation drawn from (seed, frame, v) alone, so nothing depends on the order of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from fastalter.data.augment import (
    BevTransform,
    ImageTransform,
    draw_bev_transform,
    draw_image_transform,
    transform_boxes,
)
from fastalter.data.batch import Batch
from fastalter.data.prepare import PrepareOptions, collate, prepare, usable_boxes
from fastalter.data.sample import Sample
from fastalter.errors import DataError

CACHE_BYTES = 1 << 30
TRIES = 32
"""Draws of one view until it keeps a box in range; after that the scene stays as it is and only the images change."""


class Batches(Sequence[Batch]):
    """A list of batches, each made by `make(index)` when asked for and kept while all kept ones fit `cache_bytes`.

    A run reads a batch several times, so small lists are served from memory; past the limit files are read again.
    `description` says in words what the data is, `synthetic` that none of it was recorded. Nobody may change a batch's
    tensors in place.
    """

    def __init__(
        self,
        make: Callable[[int], Batch],
        length: int,
        description: str,
        cache_bytes: int = CACHE_BYTES,
        synthetic: bool = False,
    ) -> None:
        self.description, self.synthetic = description, synthetic
        self._make, self._length, self._room = make, length, cache_bytes
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        index = index + self._length if index < 0 else index
        if not 0 <= index < self._length:
            raise IndexError(f"batch {index} of {self._length}")
        if index in self._kept:
            return self._kept[index]
        batch = self._make(index)
        size = _bytes(batch)
        if size <= self._room:
            self._room -= size
            self._kept[index] = batch
        return batch


def views_of(
    frames: Sequence[Sample],
    name: str,
    *,
    batches: int,
    batch_size: int,
    options: PrepareOptions,
    seed: int,
    check: Callable[[Batch], Batch] = lambda batch: batch,
) -> Batches:
    """`batches` batches of `batch_size` samples from frames called `name`; each goes through `check`.

    Frames are taken in an order shuffled by `seed`; those without a box of a known class in range are passed over. When
    the frames run out their views 1, 2, ... follow. The files of every frame in use are looked for here, so that a
    missing one does not stop a run halfway. Raises `DataError`.
    """
    wanted = batches * batch_size
    chosen, passed_over = _choose(frames, name, wanted, options, seed)

    def make(index: int) -> Batch:
        samples = []
        for slot in range(index * batch_size, (index + 1) * batch_size):
            view, place = divmod(slot, len(chosen))
            samples.append(make_view(frames[chosen[place]], chosen[place], view, options, seed))
        return check(collate(samples))

    views = max(0, wanted - len(chosen))
    parts = [f"{batches} x {batch_size} samples", f"{min(wanted, len(chosen))} of {len(frames)} frames"]
    parts += [f"{views} augmented views of them"] if views else []
    parts += [f"{passed_over} frames without a box in range passed over"] if passed_over else []
    return Batches(make, batches, f"{name}: {', '.join(parts)}")


def in_order(
    frames: Sequence[Sample], name: str, *, batch_size: int, options: PrepareOptions, cache_bytes: int = 0
) -> Batches:
    """Every frame once, in order and unaugmented, those without boxes too: what an evaluation runs over.

    The last batch may be smaller; up to `cache_bytes` of them stay in memory. The files of all frames are looked for
    here, so that a missing one does not stop a run halfway. Raises `DataError`.
    """
    if batch_size < 1:
        raise DataError(f"{name}: batch size is {batch_size}; it must be at least 1")
    for sample in frames:
        sample.require_files()

    def make(index: int) -> Batch:
        places = range(index * batch_size, min((index + 1) * batch_size, len(frames)))
        return collate([prepare(frames[place], options) for place in places])

    length = -(-len(frames) // batch_size)
    return Batches(make, length, f"{name}: all {len(frames)} frames in order", cache_bytes)


def shuffled_passes(
    frames: Sequence[Sample], name: str, *, batch_size: int, options: PrepareOptions, seed: int, augment: bool
) -> Callable[[int], Batch]:
    """step -> batch: pass after pass through all frames, each in an order drawn from (seed, pass).

    With `augment`, pass p sees view p + 1 of a frame, else the frame itself. What does not fill a batch at the end of a
    pass is left out. Raises `DataError` where the frames do not fill one batch or none has a box of a known class.
    """
    per_pass = len(frames) // batch_size
    if not per_pass:
        raise DataError(f"{name}: {len(frames)} frames do not fill a batch of {batch_size}; use a smaller batch size")
    if not any(bool((sample.labels >= 0).any()) for sample in frames):
        raise DataError(f"{name}: no annotated box of a known class in any frame; use a split with annotations")

    def batch(step: int) -> Batch:
        turn, place = divmod(step, per_pass)
        order = np.random.default_rng((seed, turn)).permutation(len(frames))
        chosen = order[place * batch_size : (place + 1) * batch_size].tolist()
        view = turn + 1 if augment else 0
        return collate([make_view(frames[index], index, view, options, seed) for index in chosen])

    return batch


def make_view(sample: Sample, frame: int, view: int, options: PrepareOptions, seed: int) -> Batch:
    """View `view` of a frame as a `Batch` of one; 0 is the frame in the published evaluation setting."""
    if view == 0:
        return prepare(sample, options)
    bev, images = draw_view(sample, frame, view, options, seed)
    return prepare(sample, options, bev, images, view=f"#view{view}")


def draw_view(
    sample: Sample, frame: int, view: int, options: PrepareOptions, seed: int
) -> tuple[BevTransform, list[ImageTransform]]:
    """The augmentations of a view, a function of (seed, frame, view) and of the sample's boxes."""
    rng = np.random.default_rng((seed, frame, view))
    for _ in range(TRIES):
        bev = draw_bev_transform(rng)
        if usable_boxes(transform_boxes(sample.boxes, bev.matrix()), sample.labels, options.point_cloud_range):
            break
    else:
        bev = BevTransform()
    return bev, [draw_image_transform(rng) for _ in sample.images]


def _choose(
    frames: Sequence[Sample], name: str, wanted: int, options: PrepareOptions, seed: int
) -> tuple[list[int], int]:
    """Indices of up to `wanted` usable frames in shuffled order, and how many were passed over on the way."""
    chosen: list[int] = []
    passed_over = 0
    for index in np.random.default_rng(seed).permutation(len(frames)).tolist():
        sample = frames[index]
        if usable_boxes(sample.boxes, sample.labels, options.point_cloud_range):
            sample.require_files()
            chosen.append(index)
        else:
            passed_over += 1
        if len(chosen) == wanted:
            break
    if not chosen:
        raise DataError(
            f"{name}: no box of a known class in range in any of {len(frames)} frames, the first of them sample "
            f"{frames[0].token}, so there is nothing to learn from; use frames with annotations"
        )
    return chosen, passed_over


def _bytes(batch: Batch) -> int:
    tensors = [batch.images, *batch.points, *batch.boxes]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
