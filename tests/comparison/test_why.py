"""What a score keeps of DeCI's choice, on ten numbers."""

from __future__ import annotations

import pytest
import torch

from recipes.experiment import why


def test_shares_of_what_deci_would_keep():
    deci = torch.tensor([10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])  # the median of torch is 5
    score = torch.tensor([-1.0, 9.0, -8.0, 7.0, 6.0, 5.5, 0.0, 0.0, 0.0, 5.0])
    found = why.against_deci(deci, score, "channel")  # half of them stay: 1, 3, 4, 5, 9
    assert found == pytest.approx(
        {
            "as_deci": 3 / 5,
            "deci_sum": (9 + 7 + 6 + 5 + 1) / 55,
            "deci_sum_of_deci": 40 / 55,
            "below_median": 1 / 5,
            "negative_of_best": 2 / 5,
        }
    )
    row = {"granularity": "channel", "method": "altermoma", **found}
    shown = "| channels, 50 % stay | altermoma | 60 % | 51 % | 73 % | 20 % | 40 % |"
    assert why.table([row]).splitlines()[2] == shown


def test_deci_against_itself_keeps_its_own_choice():
    deci = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    found = why.against_deci(deci, deci, "weight")
    assert found["as_deci"] == 1
    assert found["deci_sum"] == found["deci_sum_of_deci"]
    assert found["negative_of_best"] == 0
