"""Compressed 2:4 models against the masked dense ones, and their format against torch's own conversion."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

import fastalter
from fastalter import FastalterError, Mask, Scores
from fastalter.altermoma import Layout
from fastalter.errors import MaskError
from fastalter.fusion.weights import default_prunable
from fastalter.masks import layer_kinds
from fastalter.masks.hold import holds_in
from fastalter.ops.reference.compaction import decompress_nm
from fastalter.structure import nm_layers
from fastalter.structure.nm import load_semi_structured, to_semi_structured

PATTERNS = {torch.float16: (2, 4), torch.bfloat16: (2, 4), torch.float32: (1, 2)}
# What sums in another order may differ by, of the largest output: the weights are the same bits, but libraries choose
# their loops by where a tensor happens to lie in memory. A few roundings of the dtype.
ORDER = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5}
dtypes = pytest.mark.parametrize("dtype", list(PATTERNS), ids=str)


class Net(nn.Module):
    """Every kind of layer that can be compressed, and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.point = nn.Conv2d(64, 64, 1)
        self.stride = nn.Conv2d(64, 64, 1, stride=2)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 96, bias=False)
        self.odd = nn.Linear(96, 40)

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(self.norm(self.conv(self.stem(x))).relu())
        tokens = self.stride(y).flatten(2).transpose(1, 2)
        tokens = self.layer(self.attention(tokens, tokens, tokens)[0])
        return self.odd(self.head(tokens.transpose(1, 2).transpose(1, 2)))  # type: ignore[no-any-return]


COMPRESSED = [
    "conv.weight",
    "point.weight",
    "stride.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "layer.self_attn.in_proj_weight",
    "layer.self_attn.out_proj.weight",
    "layer.linear1.weight",
    "layer.linear2.weight",
    "head.weight",
]


def net_and_input(dtype: torch.dtype = torch.float32) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for name, tensor in net.norm.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(64) + 0.5 * (name == "running_var"))
    return net.to(dtype), torch.randn(2, 3, 16, 12).to(dtype)


def mask_for(model: nn.Module, n_m: tuple[int, int] | None, seed: int = 0) -> Mask:
    """A random mask over all prunable weights; n_m None: by ratio."""
    modules = dict(model.named_modules())
    rows = [
        [name, tuple(parameter.shape), "fusion"]
        for name, parameter in model.named_parameters()
        if default_prunable(name, parameter, modules[name.rpartition(".")[0]])
    ]
    layout = Layout.from_json(rows)
    flat = torch.rand(layout.size, generator=torch.Generator().manual_seed(seed))
    scores = Scores(flat, layout, {"method": "random", "layers": layer_kinds(model, layout)})
    return scores.mask(0.5) if n_m is None else scores.mask(n_m=n_m)


def masked_copy(model: nn.Module, mask: Mask) -> nn.Module:
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        if name in mask:
            parameter.data *= mask[name]
    return other


def same_bits(found: Tensor, expected: Tensor) -> bool:
    bits = (tensor.detach().flatten().view(torch.uint8) for tensor in (found, expected))
    return found.dtype == expected.dtype and torch.equal(*bits)


def agree(found: Tensor, expected: Tensor) -> bool:
    difference = (found.double() - expected.double()).abs().max()
    return found.dtype == expected.dtype and bool(difference <= ORDER[found.dtype] * expected.double().abs().max())


@dtypes
def test_a_compressed_model_computes_what_the_masked_one_does(dtype: torch.dtype) -> None:
    net, x = net_and_input(dtype)
    mask = mask_for(net, PATTERNS[dtype])
    before = copy.deepcopy(net.state_dict())
    small = to_semi_structured(net, mask)
    assert small.compressed == COMPRESSED
    assert small.dense == {
        "stem.weight": "3 inputs: no multiple of 4",
        "odd.weight": f"a matrix of 40 x 96: rows must be a multiple of 32 and columns of {8 * PATTERNS[dtype][1]}",
    }
    masked = masked_copy(net, mask)
    with torch.no_grad():
        assert agree(small.model(x), masked(x))  # also through the encoder layer's own kernel
    assert agree(small.model(x), masked(x))
    for name in COMPRESSED:
        path, _, last = name.rpartition(".")
        weight = getattr(small.model.get_submodule(path), last)
        assert same_bits(weight, masked.get_parameter(name) + 0.0)  # + 0.0 makes 0.0 of -0.0, which masking makes
        assert weight.stride() == net.get_parameter(name).stride()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert type(net.head) is nn.Linear


@dtypes
def test_values_and_metadata_are_those_of_torchs_own_conversion(dtype: torch.dtype) -> None:
    net, _ = net_and_input(dtype)
    mask = mask_for(net, PATTERNS[dtype])
    state = to_semi_structured(net, mask).model.state_dict()
    for name in COMPRESSED:
        path, _, last = name.rpartition(".")
        values, metadata = (state[f"{path}.parametrizations.{last}.original{i}"] for i in (0, 1))
        weight = net.get_parameter(name).detach() * mask[name]
        matrix = weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
        expected = sparse_semi_structured_from_dense_cutlass(matrix.contiguous())
        assert same_bits(values, expected[0])
        assert same_bits(metadata, expected[1])
        assert name not in state


def test_a_mask_of_one_of_two_suits_every_dtype() -> None:
    for dtype in PATTERNS:
        net, x = net_and_input(dtype)
        mask = mask_for(net, (1, 2))
        small = to_semi_structured(net, mask)
        assert small.compressed == COMPRESSED
        assert agree(small.model(x), masked_copy(net, mask)(x))


def test_what_nothing_can_be_compressed_of_is_refused() -> None:
    net, _ = net_and_input()
    said = r"more than 1 of 2 inputs stay and torch.float32 can have 1: make the mask with n_m=\(1, 2\)"
    with pytest.raises(MaskError, match=said):
        to_semi_structured(net, mask_for(net, (2, 4)))
    with pytest.raises(MaskError, match=r"more than 2 of 4 inputs stay and torch.bfloat16 .* n_m=\(2, 4\)"):
        to_semi_structured(net.bfloat16(), mask_for(net, None))
    with pytest.raises(MaskError, match=r"none of 12 weights can be compressed \(torch.float64: float16"):
        to_semi_structured(net.double(), mask_for(net, (1, 2)))
    with pytest.raises(MaskError, match="use the mask's own model"):
        to_semi_structured(nn.Linear(32, 32), mask_for(net, (2, 4)))


def test_a_weight_of_two_layers_stays_dense_and_masked() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)).half()
    net[2].weight = net[0].weight
    mask = mask_for(net, (2, 4))
    small = to_semi_structured(net, mask)
    assert small.compressed == ["1.weight"]
    assert small.dense == {"0.weight": "shared by 0.weight and 2.weight"}
    x = torch.randn(5, 32).half()
    assert agree(small.model(x), masked_copy(net, mask)(x))
    assert not bool(small.model[2].weight[~mask["0.weight"]].any())


def test_a_model_that_is_held_pruned_is_compressed_free_of_its_holds() -> None:
    net, x = net_and_input(torch.bfloat16)
    mask = mask_for(net, (2, 4))
    pruned = fastalter.prune_model(net, mask)
    small = to_semi_structured(net, mask)
    assert agree(small.model(x), net(x))
    assert holds_in(small.model) == []
    assert pruned.held


@dtypes
def test_a_compressed_file_is_nine_sixteenths_and_comes_back_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    net, x = net_and_input(dtype)
    mask = mask_for(net, PATTERNS[dtype])
    small = to_semi_structured(net, mask)
    path = tmp_path / "small.safetensors"
    small.save(path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    dense = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    compressed = sum(net.get_parameter(name).numel() * dtype.itemsize for name in COMPRESSED)
    assert len(content) - header == dense - compressed * 7 // 16
    torch.manual_seed(1)
    again = load_semi_structured(Net().to(dtype).eval(), path)
    assert (again.compressed, again.dense) == (small.compressed, small.dense)
    assert agree(again.model(x), small.model(x))
    assert all(same_bits(t, small.model.state_dict()[name]) for name, t in again.model.state_dict().items())


def test_a_file_for_another_model_is_refused(tmp_path: Path) -> None:
    net, _ = net_and_input(torch.float16)
    path = tmp_path / "small.safetensors"
    mask = mask_for(net, (2, 4))
    to_semi_structured(net, mask).save(path)
    with pytest.raises(MaskError, match=r"does not fit this model \(.*torch.float16 in the file and torch.bfloat16"):
        load_semi_structured(Net().bfloat16(), path)
    with pytest.raises(MaskError, match=r"does not fit this model \(conv.weight is compressed in the file"):
        load_semi_structured(nn.Linear(32, 32).half(), path)
    other = Net().half()
    other.head = nn.Linear(64, 32, bias=False).half()
    with pytest.raises(MaskError, match=r"does not fit this model \(.*size mismatch"):
        load_semi_structured(other, path)
    mask.save(path)
    with pytest.raises(FastalterError, match="expected fastalter semi-structured model, found mask"):
        load_semi_structured(net, path)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on a GPU of sm_80: torch's tensors are used, and their two products, torch's only ops here, run dense.

    Gives the shapes of the products that ran.
    """
    ran: list[tuple[int, ...]] = []

    def mm(values: Tensor, metadata: Tensor, other: Tensor) -> Tensor:
        ran.append((values.shape[0], 2 * values.shape[1], other.shape[1]))
        return decompress_nm(values, metadata) @ other

    def addmm(bias: Tensor, values: Tensor, metadata: Tensor, other: Tensor) -> Tensor:
        return mm(values, metadata, other) + bias[:, None]

    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", mm)
    monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", addmm)
    monkeypatch.setattr(nm_layers, "has_kernel", lambda device, dtype, rows, columns: True)
    return ran


@dtypes
@pytest.mark.parametrize("grad", [True, False])
def test_layers_multiply_with_torchs_tensors_where_there_is_a_kernel(kernels, dtype: torch.dtype, grad: bool) -> None:
    net, x = net_and_input(dtype)
    mask = mask_for(net, PATTERNS[dtype])
    small = to_semi_structured(net, mask).model
    assert isinstance(small.head.weight, SparseSemiStructuredTensorCUTLASS)
    assert isinstance(small.point.weight, SparseSemiStructuredTensorCUTLASS)
    with torch.set_grad_enabled(grad):
        found, expected = small(x), masked_copy(net, mask)(x)
    padded = 8 if dtype != torch.float32 else 4
    assert kernels == [(64, 64, 2 * 8 * 6), (96, 64, -(-2 * 4 * 3 // padded) * padded)]  # point and head, no others
    assert agree(found, expected)


def test_inputs_of_any_layout_and_rank_reach_the_kernel(kernels) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.Conv2d(32, 64, 1, bias=False))
    mask = mask_for(net, (1, 2))
    small, masked = to_semi_structured(net, mask).model, masked_copy(net, mask)
    for x in (torch.randn(64), torch.randn(3, 64), torch.randn(64, 5).t(), torch.randn(2, 64, 7).transpose(1, 2)):
        assert agree(small[0](x), masked[0](x))
    image = torch.randn(2, 32, 5, 3)
    for x in (image, image.to(memory_format=torch.channels_last), image[0], image[..., 1:]):
        assert agree(small[1](x), masked[1](x))
    assert len(kernels) == 8


def test_the_tiny_model_is_compressed_and_detects_the_same() -> None:
    model = fastalter.models.build("bevfusion-tiny").eval()
    batch = next(iter(fastalter.data.load("synthetic", batches=1, batch_size=1, config=model.config, seed=0)))
    mask = mask_for(model, (1, 2))
    small = to_semi_structured(model, mask)
    assert len(small.compressed) > 20
    with torch.no_grad():
        expected = masked_copy(model, mask)(batch)
        found = small.model(batch)
    assert found.keys() == expected.keys()
    assert all(agree(found[key], expected[key]) for key in expected if expected[key].is_floating_point())


@pytest.mark.gpu
@dtypes
def test_on_a_gpu_the_kernels_agree_with_the_masked_model(dtype: torch.dtype) -> None:
    net, x = net_and_input(dtype)
    mask = mask_for(net, PATTERNS[dtype])
    net, x = net.cuda(), x.cuda()
    small = to_semi_structured(net, mask).model
    weight = small.head.weight
    if torch.cuda.get_device_capability()[0] == 8:
        assert isinstance(weight, SparseSemiStructuredTensorCUTLASS)
    with torch.no_grad():
        expected = copy.deepcopy(net)
        for name, parameter in expected.named_parameters():
            if name in mask:
                parameter *= mask[name].cuda()
        assert agree(small(x), expected(x))
