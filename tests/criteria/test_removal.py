"""Removal in rounds: exact counts, nothing comes back, and the score alone tells who survived."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastalter.altermoma import Layout
from fastalter.criteria.removal import Removal
from fastalter.masks import keep_count, select

N = 37
LAYOUT = Layout.from_json([["a.weight", [5, 5], "camera"], ["b.weight", [12], "fusion"]])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5]), min_size=N, max_size=N), min_size=1, max_size=5),
    ratio=st.floats(0, 0.999),
)
def test_every_round_leaves_exactly_its_share_of_what_was_left(values: list[list[float]], ratio: float) -> None:
    removal, rounds = Removal(LAYOUT, ratio, len(values)), len(values)
    alive = list(range(N))
    for done, row in enumerate(values, 1):
        score = removal.next(torch.tensor(row, dtype=torch.float64))
        assert [i for i in range(N) if score[i] >= 0] == (
            alive if done == rounds else sorted(cut(alive, row, ratio, done, rounds))
        )
        alive = sorted(cut(alive, row, ratio, done, rounds))
        if done < rounds:
            left = torch.ones(N)
            removal.apply(left)
            assert left.nonzero().flatten().tolist() == alive
    kept = select(score, LAYOUT, keep_count(N, ratio), ratio=ratio)
    assert torch.cat([kept[n].reshape(-1) for n in kept]).nonzero().flatten().tolist() == alive


def cut(alive: list[int], row: list[float], ratio: float, done: int, rounds: int) -> list[int]:
    share = (1 - ratio) if done == rounds else (1 - ratio) ** (done / rounds)
    return sorted(alive, key=lambda i: (-row[i], i))[: round(N * share)]


def test_a_removed_weight_scores_by_the_round_it_went_in() -> None:
    removal = Removal(LAYOUT, 0.9, 3)
    for _ in range(3):
        score = removal.next(torch.arange(float(N)))
    assert score.unique().tolist()[:2] == [-2, -1]
    assert bool((score.diff() >= 0).all())  # the lowest went first
