"""What holds for all ops: torch's own checks of the registrations, the choice of backend, and complaints."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from fastalter import env, ops
from fastalter.errors import BackendError, FastalterError
from fastalter.ops import backends, reference, schema
from tests.ops.arenas import make


def arguments(dtype: torch.dtype = torch.float32) -> dict[str, tuple[object, ...]]:
    """Valid arguments of every op, at the level of its schema."""
    return {**scoring(dtype), **fusing(dtype), **layers(dtype), **compaction(dtype)}


def scoring(dtype: torch.dtype) -> dict[str, tuple[object, ...]]:
    theta, grad, start, end, score, deci = (make("normal", 200, dtype, seed) for seed in range(6))
    histogram = torch.bincount(reference.top_digit(score), minlength=65536)
    threshold, cut = reference.kth_value(score, 50)
    segments = torch.tensor([0, 30, 200])
    mask, _ = reference.make_mask(score, threshold, cut, segments)
    weights = (1.0, 1.0, 0.5, [0.5])
    written = (score.clone(), histogram.clone())
    members = torch.tensor([[0, 1, 0, 90], [90, 11, 10, 3], [93, 11, 10, 3]])
    return {
        "indicator_sums": (theta, grad, [start], [end]),
        "alter_score": (*written, theta, grad, [start], [end], *weights, deci, None),
        "kth_value": (score, 50, histogram),
        "make_mask": (score, threshold, cut, segments),
        "apply_mask": ([theta.clone(), make("normal", 90, dtype, 9).view(9, 10).t()], mask, [3, 100]),
        "channel_sum": (theta, grad, members, torch.tensor([0, 1, 3])),
    }


def fusing(dtype: torch.dtype) -> dict[str, tuple[object, ...]]:
    first, second, weight, p, q, g = (
        make("normal", torch.Size(shape).numel(), dtype, seed).view(shape)
        for seed, shape in enumerate([(2, 3, 6, 5), (2, 4, 6, 5), (5, 7, 3, 3), *[(2, 5, 6, 5)] * 3])
    )
    rows = [make("normal", 5, torch.float64, seed) for seed in range(6)]
    tables = (rows[:3], rows[3:], True)
    return {
        "masked_fuse": (*(x.requires_grad_() for x in (first, second, weight)), [1, 1], [1, 1], [1, 1]),
        "masked_fuse_sums": (p, q),
        "masked_fuse_grad": (g, torch.stack(rows[:2]), rows[2], p, q),
        "masked_fuse_norm": (p.clone().requires_grad_(), q.clone().requires_grad_(), *tables),
        "masked_fuse_norm_backward": (g, None, g, p, q, *tables),
    }


def layers(dtype: torch.dtype) -> dict[str, tuple[object, ...]]:
    x, w, bias, image, kernel, grad = (
        make("normal", torch.Size(shape).numel(), dtype, seed).view(shape)
        for seed, shape in enumerate([(4, 6), (5, 6), (5,), (2, 3, 6, 5), (4, 3, 3, 3), (2, 4, 6, 5)])
    )
    mask = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 16, dtype=np.uint8))
    conv = ([1, 1], [1, 1], [1, 1])
    wanting = [tensor.clone().requires_grad_() for tensor in (x, w, bias, image, kernel)]
    return {
        "masked_linear": (wanting[0], wanting[1], mask, 3, wanting[2]),
        "masked_linear_dgrad": (x @ w.t(), w, mask, 3),
        "masked_linear_wgrad": (x @ w.t(), x, mask, 3),
        "masked_conv2d": (wanting[3], wanting[4], mask, 3, None, *conv),
        "masked_conv2d_dgrad": (grad, kernel, mask, 3, [6, 5], *conv),
        "masked_conv2d_wgrad": (grad, image, mask, 3, [3, 3], *conv),
    }


def compaction(dtype: torch.dtype) -> dict[str, tuple[object, ...]]:
    dense = torch.where(make("normal", 200, torch.float32, 0) > 1, make("normal", 200, torch.float32, 1), 0.0).to(dtype)
    mask, values = reference.pack_sparse(dense)
    weights = [dense.view(10, 20).clone(), dense[:24].clone()]
    nothing = torch.empty(0, dtype=torch.int64)
    kept = [torch.tensor([1, 4]), torch.tensor([0, 7, 19]), torch.tensor([23]), nothing]
    return {
        "compact_channels": (weights, kept, [0, 1, 0, -1]),
        "pack_sparse": (dense,),
        "unpack_sparse": (mask, values, 200),
        "compress_nm": (make("zeros", 1024, torch.float32, 0).view(32, 32),),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", backends.OPS)
def test_torch_accepts_schema_fake_and_kernel(op: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(getattr(torch.ops.fastalter, op).default, arguments(dtype)[op])


@pytest.mark.parametrize("state", ["both", "first", "second"])
def test_torch_accepts_masked_fuse_norm_with_a_gradient_for_one_state(state: str) -> None:
    p, q, scale, shift, relu = fusing(torch.float32)["masked_fuse_norm"]
    which = ["both", "first", "second"].index(state)
    rows = [[row.requires_grad_(v == which) for v, row in enumerate(table)] for table in (scale, shift)]
    torch.library.opcheck(torch.ops.fastalter.masked_fuse_norm.default, (p, q, *rows, relu))


@pytest.mark.parametrize("op", ["masked_fuse", "masked_fuse_sums", "masked_fuse_norm", "masked_fuse_norm_backward"])
def test_torch_accepts_the_ops_without_a_second_feature(op: str) -> None:
    given = list(fusing(torch.float32)[op])
    second = {"masked_fuse_norm_backward": 4}.get(op, 1)
    given[second] = None
    if op == "masked_fuse_norm_backward":
        given[:3] = None, given[0], None  # a state that is not there has no gradient
    if op == "masked_fuse":
        given[2] = given[2].detach()[:, :3].contiguous().requires_grad_()
    torch.library.opcheck(getattr(torch.ops.fastalter, op).default, tuple(given))


def test_every_op_has_schema_reference_fake_and_the_public_ones_a_wrapper() -> None:
    assert set(schema.SCHEMAS) == set(backends.OPS)
    for family in schema.FAMILIES:
        assert all(callable(getattr(family, f"fake_{op}")) for op in family.SCHEMAS)
    assert all(callable(getattr(reference, op)) for op in backends.OPS)
    # What only autograd and other ops call has no wrapper.
    internal = {op for op in backends.OPS if op.endswith(("grad", "_sums", "_backward"))} - {"indicator_sums"}
    assert set(backends.OPS) - internal == set(ops.__all__) - {"HISTOGRAM_BINS"}


def test_the_dispatcher_serves_the_cpu_from_the_library() -> None:
    for op in backends.OPS:
        # Masked layers are torch's own products on the CPU: the reference is as fast as it gets.
        assert backends.serving(op, "cpu").name == ("reference" if op in backends.LAYERS else "cpp")
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastalter::{op}", "CPU")
        assert has_kernel == (op not in backends.LAYERS)


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
    served = {op: "reference" if op in backends.LAYERS else "cpp" for op in backends.OPS}
    assert {op: row["serves"] for op, row in facts["ops"]["cpu"].items()} == served
    assert facts["libraries"]["libfastalter_cpu.so"] == "loaded"
    assert env.main([]) == 0
    shown = capsys.readouterr().out
    assert all(op in shown for op in backends.OPS)


E, F = torch.empty, torch.zeros(2, 4, 5, 5)  # features
R = [torch.zeros(4, dtype=torch.float64)] * 3
I = torch.tensor([0, 1])  # noqa: E741  kept channels
P = torch.tensor([[0, 1, 0, 64]])  # a channel group's member
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
    "theta[0] is torch.int32": lambda: ops.apply_mask([A.int()], M, [0]),
    "has gaps": lambda: ops.apply_mask([A.view(8, 8)[:, :4]], M, [0]),
    "overlaps itself": lambda: ops.apply_mask([A[:1].expand(4)], M, [0]),
    "cuda:0, but must be|on meta": lambda: ops.apply_mask([torch.zeros(8, device="meta")], M, [0]),
    "theta is (64,) on cpu, but must be a contiguous (63,)": lambda: ops.indicator_sums(A.half(), A[:63]),
    "members is 1-dim": lambda: ops.channel_sum(A, A, P[0], I),
    "groups is 1-dim torch.int32": lambda: ops.channel_sum(A, A, P, I.int()),
    "members is not contiguous": lambda: ops.channel_sum(A, A, P.expand(2, 4), I),
    "members must be [R, 4] and groups ascending": lambda: ops.channel_sum(A, A, P, torch.tensor([0, 2])),
    "channel_sum: grad is (63,)": lambda: ops.channel_sum(A, A[:63], P, I),
    "reaches outside the arena of 64": lambda: ops.channel_sum(A, A, P + torch.tensor([1, 0, 0, 0]), I),
    "reaches outside the arena of 64 elements": lambda: ops.channel_sum(A, A, -P, I),
    "masked_fuse: first is torch.int64": lambda: ops.masked_fuse(F.long(), F, F),
    "second is torch.float64 on cpu, but must be torch.float32": lambda: ops.masked_fuse(F, F.double(), F),
    "do not fit: pass [B, C1, H, W]": lambda: ops.masked_fuse(F, F, E(4, 7, 3, 3)),
    "first (2, 4, 5, 5), second (2, 4, 5, 4)": lambda: ops.masked_fuse(F, F[..., :4], E(4, 8, 3, 3)),
    "the products are (2, 4, 5, 5) and (2, 4, 5, 4)": lambda: ops.masked_fuse_norm(F, F[..., :4], R, R),
    "a row of scale is (4,) torch.float32": lambda: ops.masked_fuse_norm(F, F, [r.float() for r in R], R),
    "a row of shift is (3,)": lambda: ops.masked_fuse_norm(F, F, R, [r[:3] for r in R]),
    "scale has 2 rows": lambda: ops.masked_fuse_norm(F, F, R[:2], R),
    "masked_linear: weight is torch.float64": lambda: ops.masked_linear(A, E(2, 64).double(), M),
    "input (64,) and weight (2, 63) do not fit": lambda: ops.masked_linear(A, E(2, 63), M),
    "weight needs bits 1..65, but the mask has 64": lambda: ops.masked_linear(A, E(1, 64), M, 1),
    "masked_linear: mask is 1-dim torch.bool": lambda: ops.masked_linear(A, E(1, 64), M.bool()),
    "pass [B, I, H, W] and [O, I, kh, kw]": lambda: ops.masked_conv2d(F, E(4, 3, 3, 3), M),
    "masked_conv2d: weight needs bits 0..144": lambda: ops.masked_conv2d(F, E(4, 4, 3, 3), M),
    "1 weights but 2 sets": lambda: ops.compact_channels([A], [{}, {}]),
    "kept[0] names dim 1 of a weight of shape (64,)": lambda: ops.compact_channels([A], [{1: I}]),
    "give at most two different ones": lambda: ops.compact_channels([F], [{0: I, -4: I}]),
    "kept[0] names dims [0, 1, 2]": lambda: ops.compact_channels([F], [{0: I, 1: I, 2: I}]),
    "kept[0][0] is 1-dim torch.int32": lambda: ops.compact_channels([A], [{0: I.int()}]),
    "kept[1][1] holds an index outside 0..3": lambda: ops.compact_channels([A, F], [{0: I}, {0: I, 1: I + 3}]),
    "kept[0][0] holds an index outside 0..63": lambda: ops.compact_channels([A], [{0: I - 1}]),
    "dense is 2-dim torch.float32": lambda: ops.pack_sparse(A.view(8, 8)),
    "dense is 1-dim torch.int64": lambda: ops.pack_sparse(H),
    "mask is (8,) torch.uint8, but must be (16,)": lambda: ops.unpack_sparse(M, A, 65),
    "values is 1-dim torch.int64": lambda: ops.unpack_sparse(M, H, 64),
    "unpack_sparse: the mask has 0 bits set, but there are 64 values": lambda: ops.unpack_sparse(M, A, 64),
    "unpack_sparse: the mask has 64 bits set, but there are 1 values": lambda: ops.unpack_sparse(~M, A[:1], 64),
    "unpack_sparse: the mask has 3 bits set, but there are 64 values": lambda: ops.unpack_sparse(~M, A, 3),
    "compress_nm: dense is 2-dim torch.float64": lambda: ops.compress_nm(E(32, 32).double()),
    "dense is (31, 32), but must have rows a multiple of 32": lambda: ops.compress_nm(E(31, 32)),
    "columns of 32": lambda: ops.compress_nm(E(32, 16).half()),
}


@pytest.mark.parametrize("complaint", BAD_CALLS)
def test_bad_arguments_are_refused_in_one_line_that_says_which(complaint: str) -> None:
    refuse(complaint)


@pytest.mark.parametrize("complaint", [c for c in BAD_CALLS if "holds an index" in c or "bits set" in c])
def test_what_only_an_implementation_sees_is_refused_by_both(complaint: str, backend: str) -> None:
    refuse(complaint)


def refuse(complaint: str) -> None:
    pattern = "|".join(re.escape(part) for part in complaint.split("|"))
    with pytest.raises(FastalterError, match=pattern) as caught:
        BAD_CALLS[complaint]()
    assert "\n" not in str(caught.value)
