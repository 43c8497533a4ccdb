"""What holds for all ops: torch's own checks of the registrations, the choice of backend, and complaints."""

from __future__ import annotations

import json
import re

import pytest
import torch

from fastalter import env, ops
from fastalter.errors import BackendError, FastalterError
from fastalter.ops import backends, reference, schema
from tests.ops.arenas import make


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, tuple[object, ...]]:
    """Valid arguments of every op, at the level of its schema."""
    theta, grad, start, end, score, deci = (make("normal", 200, dtype, seed) for seed in range(6))
    histogram = torch.bincount(reference.top_digit(score), minlength=65536)
    threshold, cut = reference.kth_value(score, 50)
    segments = torch.tensor([0, 30, 200])
    mask, _ = reference.make_mask(score, threshold, cut, segments)
    return {
        "indicator_sums": (theta, grad, [start], [end]),
        "alter_score": (
            score.clone(),
            histogram.clone(),
            theta,
            grad,
            [start],
            [end],
            1.0,
            1.0,
            0.5,
            [0.5],
            deci,
            None,
        ),
        "kth_value": (score, 50, histogram),
        "make_mask": (score, threshold, cut, segments),
        "apply_mask": ([theta.clone(), make("normal", 90, dtype, 9).view(9, 10).t()], mask, [3, 100]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", backends.OPS)
def test_torch_accepts_schema_fake_and_kernel(op: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(getattr(torch.ops.fastalter, op).default, arguments(dtype)[op])


def test_every_op_has_schema_reference_wrapper_and_fake() -> None:
    assert set(schema.SCHEMAS) == set(backends.OPS)
    for op in backends.OPS:
        assert callable(getattr(reference, op))
        assert callable(getattr(ops, op))
        assert callable(getattr(schema, f"_fake_{op}"))


def test_the_dispatcher_serves_the_cpu_from_the_library() -> None:
    for op in backends.OPS:
        assert backends.serving(op, "cpu").name == "cpp"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastalter::{op}", "CPU")


def test_a_cuda_tensor_is_never_served_by_the_cpu_library() -> None:
    for op in backends.OPS:
        assert backends.serving(op, "cuda").name in ("cuda", "triton", "reference")


@pytest.mark.parametrize("name", ["triton", "cuda", "cupy"])
def test_a_forced_backend_that_cannot_serve_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.VARIABLE, name)
    with pytest.raises(BackendError, match=f"FASTALTER_BACKEND={name} cannot run kth_value on cpu"):
        ops.kth_value(torch.randn(8), 3)


def test_a_forced_backend_is_the_one_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(reference, "kth_value", lambda *args: called.append(args) or (args[0][0], args[0][0]))
    ops.kth_value(torch.randn(8), 3)
    assert not called
    monkeypatch.setenv(backends.VARIABLE, "reference")
    ops.kth_value(torch.randn(8), 3)
    assert len(called) == 1


def test_an_unknown_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.VARIABLE, "fast")
    with pytest.raises(BackendError, match="fast names no implementation: choose one of cpp, cuda, triton"):
        ops.kth_value(torch.randn(8), 3)


def test_without_the_library_the_reference_serves_and_cpp_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "load", lambda backend: "is not built" if backend.library else None)
    assert {backends.serving(op, "cpu").name for op in backends.OPS} == {"reference"}
    monkeypatch.setenv(backends.VARIABLE, "cpp")
    with pytest.raises(BackendError, match="cpp is not built"):
        ops.kth_value(torch.randn(8), 3)


def test_the_environment_report_names_every_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert env.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {op: row["serves"] for op, row in facts["ops"]["cpu"].items()} == dict.fromkeys(backends.OPS, "cpp")
    assert facts["libraries"]["libfastalter_cpu.so"] == "loaded"
    assert env.main([]) == 0
    shown = capsys.readouterr().out
    assert all(op in shown for op in backends.OPS)


A, H, M = torch.zeros(64), torch.zeros(65536, dtype=torch.int64), torch.zeros(8, dtype=torch.uint8)
T, C, S = torch.tensor(0.0), torch.tensor(0), torch.tensor([0, 64])
BAD_CALLS = {
    "grad is (63,)": lambda: ops.indicator_sums(A, A[:63]),
    "start[0] is (64,) torch.float64": lambda: ops.indicator_sums(A, A, [A.double()], [A]),
    "1 start arenas but 2 end arenas": lambda: ops.indicator_sums(A, A, [A], [A, A]),
    "the arena is 2-dim": lambda: ops.indicator_sums(A.view(8, 8), A.view(8, 8)),
    "the arena is 1-dim torch.float16": lambda: ops.indicator_sums(A.half(), A.half()),
    "grad is not contiguous": lambda: ops.indicator_sums(A, torch.zeros(128)[::2]),
    "0 reri_weights for 1 stages": lambda: ops.alter_score(A, H, A, A, [A], [A]),
    "deci is (1,)": lambda: ops.alter_score(A, H, A, A, deci=A[:1]),
    "histogram is (65535,)": lambda: ops.alter_score(A, H[1:], A, A),
    "histogram is (65536,) torch.int32": lambda: ops.kth_value(A, 1, H.int()),
    "cannot keep 65 of 64": lambda: ops.kth_value(A, 65),
    "cannot keep -1 of 64": lambda: ops.kth_value(A, -1),
    "threshold is 0-dim torch.float64": lambda: ops.make_mask(A, T.double(), C, S),
    "cut is 1-dim": lambda: ops.make_mask(A, T, C.view(1), S),
    "segments must be": lambda: ops.make_mask(A, T, C, torch.tensor([0, 65])),
    "segments must be one or more ascending": lambda: ops.make_mask(A, T, C, torch.tensor([9, 3])),
    "mask is 1-dim torch.bool": lambda: ops.apply_mask([A], M.bool(), [0]),
    "1 tensors but 0 offsets": lambda: ops.apply_mask([A], M, []),
    "theta[0] needs bits 1..65, but the mask has 64": lambda: ops.apply_mask([A], M, [1]),
    "theta[0] needs bits -1..63": lambda: ops.apply_mask([A], M, [-1]),
    "theta[0] is torch.float16": lambda: ops.apply_mask([A.half()], M, [0]),
    "has gaps": lambda: ops.apply_mask([A.view(8, 8)[:, :4]], M, [0]),
    "overlaps itself": lambda: ops.apply_mask([A[:1].expand(4)], M, [0]),
    "cuda:0, but must be|on meta": lambda: ops.apply_mask([torch.zeros(8, device="meta")], M, [0]),
}


@pytest.mark.parametrize("complaint", BAD_CALLS)
def test_bad_arguments_are_refused_in_one_line_that_says_which(complaint: str) -> None:
    pattern = "|".join(re.escape(part) for part in complaint.split("|"))
    with pytest.raises(FastalterError, match=pattern) as caught:
        BAD_CALLS[complaint]()
    assert "\n" not in str(caught.value)
