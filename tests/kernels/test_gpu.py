"""Every op on a CUDA device, by whatever serves it there, against its reference: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
import typer

from bench.cases import every_case
from bench.gpu import main
from fastalter.ops import backends

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", backends.OPS)
def test_every_op_equals_its_reference_on_the_gpu(op: str, dtype: torch.dtype) -> None:
    case = every_case(dtype, "cuda").get(op)
    if case is None:
        assert op in (*backends.SCORING, "compress_nm")  # arenas are float32 or float64; 2:4 has no float64
        return
    case.check()


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
