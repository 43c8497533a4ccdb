"""`--data synthetic`: samples from memory as a model's batches."""

from __future__ import annotations

import torch

from fastalter.data import load
from fastalter.data.loading import SYNTHETIC_SEED
from fastalter.models.config import BEVFusionConfig, tiny_config


def test_none_means_synthetic_and_the_seed_is_all_that_counts() -> None:
    one, again = load(None, config=tiny_config(), batches=2, seed=3), load("synthetic", config=tiny_config(), seed=3)
    assert one.synthetic
    assert one.description == "synthetic: 2 x 2 samples"
    for index in range(2):
        assert torch.equal(one[index].images, again[index].images)
        assert all(torch.equal(a, b) for a, b in zip(one[index].points, again[index].points, strict=True))
    assert not torch.equal(one[0].images, load(None, config=tiny_config(), seed=4)[0].images)
    tokens = [token for index in range(2) for token in one[index].tokens]
    assert len(set(tokens)) == 4
    assert all(f"-{SYNTHETIC_SEED + 3}-" in token for token in tokens)  # no dataset that the command writes by default


def test_earlier_scans_come_with_their_lag() -> None:
    points = load("synthetic", config=tiny_config(), batches=1, batch_size=1, sweeps=3)[0].points[0]
    lags = points[:, 4].unique()
    assert lags.tolist() == [0.0, *torch.linspace(0.125, 0.375, 3).tolist()]


def test_a_full_size_model_gets_images_and_points_of_its_size() -> None:
    config = BEVFusionConfig()
    batch = load("synthetic", config=config, batches=1, batch_size=1)[0]
    assert batch.images.shape == (1, 6, 3, 256, 704)
    assert len(batch.points[0]) > 20_000
    assert len(batch.boxes[0]) >= 4
