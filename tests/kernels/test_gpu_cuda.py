"""On a GPU: the compiled CUDA library and the road through CuPy against the reference, bitwise; launches in order."""

from __future__ import annotations

import pytest
import torch

from fastalter import ops
from fastalter.errors import MaskError
from fastalter.ops import backends, reference
from tests.kernels import compaction_cases
from tests.kernels.compaction_cases import CASES, Case

pytestmark = pytest.mark.gpu
ROADS = ("cuda", "cupy")


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(backends.VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}: {case.name}")
def test_the_kernels_agree_with_the_reference_bitwise(road: str, case: Case) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    compaction_cases.check(case, backends.implementation(case.op, device), device)


def test_a_large_tensor_keeps_every_tile_in_order(road: str) -> None:
    """Thousands of tiles, so that blocks do wait for each other; three times, for what timing could change."""
    dense = compaction_cases.sparse(30_000_001, torch.float32, 0.2).cuda()
    expected_mask, expected_values = reference.pack_sparse(dense)
    for _ in range(3):
        mask, values = ops.pack_sparse(dense)
        assert torch.equal(mask, expected_mask)
        assert torch.equal(compaction_cases.bits(values), compaction_cases.bits(expected_values))
        unpacked = ops.unpack_sparse(mask, values, dense.numel())
        assert torch.equal(compaction_cases.bits(unpacked), compaction_cases.bits(dense))


def test_offsets_beyond_32_bits(road: str) -> None:
    """4.3 billion elements of 2 bytes; needs 26 GB."""
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("needs a GPU with 30 GB free")
    dense = torch.zeros(2**32 + 64, dtype=torch.bfloat16, device="cuda")
    dense[[0, 2**31 + 1, 2**32 + 63]] = torch.tensor([1, 2, 3], dtype=torch.bfloat16, device="cuda")
    mask, values = ops.pack_sparse(dense)
    assert values.tolist() == [1, 2, 3]
    del dense
    assert ops.unpack_sparse(mask, values, 2**32 + 64)[-1].item() == 3


def test_work_goes_to_the_current_stream(road: str) -> None:
    stream = torch.cuda.Stream()
    dense = compaction_cases.two_of_four((4096, 4096), torch.float16, 0.5).cuda()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        doubled = dense * 2  # on `stream`, behind the sleep: a kernel on another stream would read too early
        values, metadata = ops.compress_nm(doubled)
    stream.synchronize()
    expected = reference.compress_nm(dense * 2)
    assert torch.equal(compaction_cases.bits(values), compaction_cases.bits(expected[0]))
    assert torch.equal(metadata, expected[1])


def test_the_compressed_form_is_what_torch_multiplies(road: str) -> None:
    from torch.sparse import SparseSemiStructuredTensorCUTLASS

    dense = compaction_cases.two_of_four((128, 128), torch.float16, 1).cuda().nan_to_num()
    dense *= torch.tensor([1, 0, 0, 1], device="cuda").repeat(32)
    expected = SparseSemiStructuredTensorCUTLASS.from_dense(dense)
    values, metadata = ops.compress_nm(dense)
    assert torch.equal(values, expected.packed.view(values.shape))
    assert torch.equal(metadata, expected.meta.view(metadata.shape))


def test_a_mask_that_does_not_fit_the_values_is_refused(road: str) -> None:
    mask, values = reference.pack_sparse(torch.eye(64, device="cuda").flatten())
    with pytest.raises(MaskError, match="the mask has 64 bits set, but there are 63 values"):
        ops.unpack_sparse(mask, values[1:], 4096)


def test_both_roads_can_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for road in ROADS:
        backend = backends.BY_NAME[road]
        assert [backends.obstacle(backend, op, "cuda") for op in compaction_cases.OPS] == [None] * 5
