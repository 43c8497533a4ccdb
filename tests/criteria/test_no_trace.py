"""After any criterion the model is bitwise what it was, also when something goes wrong in the middle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastalter.criteria import CRITERIA
from tests.criteria.cases import Case
from tests.fusion.test_preserve import assert_same, state, worn

SETTINGS: dict[str, dict[str, Any]] = {
    "synflow": {"iterations": 3},
    "prospr": {"steps": 2},
    "imp": {"rounds": 2, "steps": 2},
    "modalfisher": {"rounds": 2, "steps": 2},
}


def settings_of(method: str, case: Case) -> dict[str, Any]:
    settings = dict(SETTINGS.get(method, {}))
    return settings | {"forward": case.forward} if method == "synflow" else settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", CRITERIA)
def test_scoring_leaves_no_trace(method: str, dtype: torch.dtype) -> None:
    case = Case("user", dtype)
    worn(case.net.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    before, data = state(case.net), [tuple(t.clone() for t in batch) for batch in case.batches]
    scores = case.score(method, settings=settings_of(method, case))
    assert bool(torch.isfinite(scores.flat).all())
    assert_same(before, state(case.net))
    assert_same(data, case.batches)


class Fails(nn.Module):
    """A part of the network that breaks at one of its calls."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = [at]

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if not self.left[0]:
            raise KeyError("the user's own mistake")
        return x


@pytest.mark.parametrize(
    ("method", "fails_at"),
    [
        ("deci", 2),
        ("snip", 2),
        *(("synflow", n) for n in (1, 3)),
        *(("prospr", n) for n in range(1, 5)),
        ("imp", 4),
        *(("modalfisher", n) for n in (2, 4, 11)),
    ],
)
def test_an_exception_in_the_middle_leaves_no_trace(method: str, fails_at: int) -> None:
    case = Case("small")
    case.net.head = nn.Sequential(Fails(fails_at), case.net.head)
    before = state(worn(case.net))
    with pytest.raises(KeyError, match="own mistake"):
        case.score(method, settings=settings_of(method, case))
    assert_same(before, state(case.net))


def test_scoring_works_where_gradients_are_off() -> None:
    case = Case("small")
    for method in CRITERIA:
        with torch.no_grad():
            off = case.score(method, settings=settings_of(method, case))
        assert torch.equal(off.flat, case.score(method, settings=settings_of(method, case)).flat)


def test_two_runs_are_bitwise_equal() -> None:
    case = Case("user", torch.float32)
    for method in CRITERIA:
        first, again = (case.score(method, settings=settings_of(method, case)) for _ in range(2))
        assert torch.equal(first.flat, again.flat), method


def test_progress_ends_where_it_said_it_would() -> None:
    case = Case("small")
    for method in ("deci", "synflow", "prospr", "imp", "modalfisher"):
        seen: dict[str, list[tuple[int, int]]] = {}
        case.score(
            method,
            settings=settings_of(method, case),
            progress=lambda stage, done, total, seen=seen: seen.setdefault(stage, []).append((done, total)),
        )
        (steps,) = seen.values()
        total = steps[0][1]
        assert steps == [(done, total) for done in range(total + 1)], method
