"""step -> batch of a training: orders, passes, augmented views, and data that cannot be trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastalter.data import Batch, collate, open_frames, prepare
from fastalter.data.loading import SYNTHETIC_SEED, prepare_options, training_batches
from fastalter.data.views import make_view
from fastalter.errors import DataError
from fastalter.models import config_of
from tests.data.tiny_nuscenes import SAMPLES

CONFIG = config_of("bevfusion-tiny")


def same(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(x, y) for x, y in zip((a.images, *a.points), (b.images, *b.points), strict=True))
    return tensors and a.tokens == b.tokens


def spec(tiny: Path) -> str:
    return f"nuscenes:{tiny}:v1.0-mini:all"


def test_every_pass_is_all_frames_in_an_order_of_seed_and_pass(tiny: Path) -> None:
    batch = training_batches(spec(tiny), config=CONFIG, batch_size=1, seed=5)
    frames, options = open_frames(spec(tiny)), prepare_options(CONFIG)
    for turn in (0, 1, 4):
        order = np.random.default_rng((5, turn)).permutation(SAMPLES)
        for place, index in enumerate(order):
            assert same(batch(turn * SAMPLES + place), prepare(frames[int(index)], options))


def test_the_rest_of_a_pass_that_fills_no_batch_is_left_out(tiny: Path) -> None:
    batch = training_batches(spec(tiny), config=CONFIG, batch_size=2, seed=1)
    frames, options = open_frames(spec(tiny)), prepare_options(CONFIG)
    for step in range(3):
        first, second = np.random.default_rng((1, step)).permutation(SAMPLES)[:2].tolist()
        assert same(batch(step), collate([prepare(frames[first], options), prepare(frames[second], options)]))


def test_augmented_passes_see_the_views_of_seed_frame_and_pass(tiny: Path) -> None:
    batch = training_batches(spec(tiny), config=CONFIG, batch_size=1, seed=5, augment=True)
    frames, options = open_frames(spec(tiny)), prepare_options(CONFIG)
    for turn in (0, 2):
        index = int(np.random.default_rng((5, turn)).permutation(SAMPLES)[1])
        found = batch(turn * SAMPLES + 1)
        assert same(found, make_view(frames[index], index, turn + 1, options, 5))
        assert not torch.equal(found.lidar_aug[0], torch.eye(4))


def test_synthetic_batches_need_no_file_and_repeat() -> None:
    first = training_batches("synthetic", config=CONFIG, batch_size=2, seed=3)
    again = training_batches("synthetic", config=CONFIG, batch_size=2, seed=3)
    other = training_batches("synthetic", config=CONFIG, batch_size=2, seed=4)
    assert same(first(1), again(1))
    assert len({token for step in (0, 1) for token in first(step).tokens}) == 4
    for batch, seed in ((first, 3), (other, 4)):
        assert all(token.startswith(f"synthetic-{SYNTHETIC_SEED + seed}-") for token in batch(1).tokens)


def test_what_cannot_be_trained_on_is_refused(tiny: Path) -> None:
    with pytest.raises(DataError, match="3 frames do not fill a batch of 4; use a smaller batch size"):
        training_batches(spec(tiny), config=CONFIG, batch_size=4)
    with pytest.raises(DataError, match="batch size is 0"):
        training_batches(spec(tiny), config=CONFIG, batch_size=0)
    with pytest.raises(DataError, match="'kitti:x' is not understood"):
        training_batches("kitti:x", config=CONFIG, batch_size=1)


def test_a_split_without_annotations_is_refused(own_tiny: Path) -> None:
    (own_tiny / "v1.0-mini" / "sample_annotation.json").write_text("[]")
    with pytest.raises(DataError, match="no annotated box of a known class in any frame; use a split with annotations"):
        training_batches(spec(own_tiny), config=CONFIG, batch_size=1)
