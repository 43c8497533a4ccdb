"""Every op on a CUDA device, by whatever serves it there, against its reference: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
import typer

from bench.cases import DTYPES, every_case, takes
from bench.gpu import main
from fastalter.ops import backends

TAKEN = [(name, op) for name, dtype in DTYPES.items() for op in backends.OPS if takes(op, dtype)]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "op"), TAKEN)
def test_every_op_equals_its_reference_on_the_gpu(dtype: str, op: str) -> None:
    every_case(DTYPES[dtype], "cuda")[op].check()


@pytest.mark.gpu
def test_two_runs_are_bitwise_equal_on_the_gpu() -> None:
    sums = [every_case(torch.float32, "cuda")["channel_sum"].run() for _ in range(2)]
    assert isinstance(sums[0], torch.Tensor)
    assert torch.equal(*sums)


def test_without_a_gpu_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.Exit) as stopped:
        main()
    assert stopped.value.exit_code == 2
    assert "torch sees no CUDA device here" in capsys.readouterr().err
