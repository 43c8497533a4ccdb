"""The sparse encoder against the recorded upstream module, plus what a scoring run relies on."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastalter.errors import ModelError
from fastalter.models.config import LidarConfig
from fastalter.models.sparse_encoder import SiteBatchNorm, SparseEncoder, SparseSequential
from fastalter.models.spconv_border import spconv
from tests.ground_truth import MODES, check_module, fill_weights, load_fixture, needs_ground_truth

SMALL = LidarConfig(
    sparse_shape=(64, 64, 41), encoder_channels=((4, 4, 8), (8, 8, 8), (8, 8, 12), (12, 12)), output_channels=6
)


def random_voxels(count, samples=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(samples * 64 * 64 * 40, generator=generator)[:count]
    coords = torch.stack([cells // 163840, cells // 2560 % 64, cells // 40 % 64, cells % 40], 1).int()
    return torch.randn(count, 5, generator=generator).to(dtype), coords


def run(encoder, voxels, samples=2):
    """Output, and gradients of its squared sum."""
    encoder.zero_grad()
    out = encoder(*voxels, samples)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in encoder.parameters())]


@needs_ground_truth
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_upstream(mode, dtype):
    """In float32 with each ReLU open where it is in float64: some of its inputs lie within rounding of the kink,
    and where one of them tips (it depends on the CPU and the threads) a gradient jumps by 2e-3 of the peak."""
    fixture = load_fixture("mit_sparse_encoder")
    encoder = SparseEncoder(LidarConfig(sparse_shape=tuple(fixture.config["sparse_shape"])))
    exact = copy.deepcopy(encoder)
    fill_weights(exact, fixture.prefix)
    named = fixture.inputs(torch.float64)
    opened = relus_opened(exact.double().train(mode == "train"), named["feats"], named["coords"])
    open_relus(encoder, opened)
    check_module(
        fixture,
        encoder,
        lambda named: {"dense": encoder(named["feats"], named["coords"], 2)},
        mode=mode,
        dtype=dtype,
    )


def relus_opened(encoder, feats, coords):
    """Where the output of every ReLU is positive, in the order of the calls."""
    opened = []
    hooks = [m.register_forward_hook(lambda _m, _i, out: opened.append(out > 0)) for m in relus(encoder)]
    encoder(feats, coords, 2)
    for hook in hooks:
        hook.remove()
    return opened


def open_relus(encoder, opened):
    """Let the ReLUs pass what `opened` says, and check that they differ from their own choice by rounding alone."""
    calls = iter(opened)

    def gate(_module, inputs, out):
        is_open = next(calls)
        assert not ((is_open != (out > 0)) & (inputs[0].abs() > 1e-5)).any()
        return inputs[0] * is_open

    for module in relus(encoder):
        module.register_forward_hook(gate)


def relus(encoder):
    return [module for module in encoder.modules() if isinstance(module, nn.ReLU)]


@needs_ground_truth
def test_stages_occupy_the_recorded_sites():
    fixture = load_fixture("mit_sparse_encoder")
    encoder = SparseEncoder(LidarConfig(sparse_shape=(128, 128, 41))).eval()
    seen = {}
    for name, module in encoder.named_modules():
        if isinstance(module, SparseSequential):
            module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name.split(".")[-1]: out}))
    named = fixture.inputs()
    encoder(named["feats"], named["coords"], 2)
    for name, expected in fixture.metadata["stages"].items():
        assert len(seen[name].indices) == expected["active"]
        assert list(seen[name].spatial_shape) == expected["spatial_shape"]


def test_full_size_grid():
    assert SparseEncoder(LidarConfig()).out_shape == (180, 180, 2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reruns_are_bitwise_equal(threads, dtype):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder = SparseEncoder(SMALL).to(dtype).train()
        voxels = random_voxels(3000, dtype=dtype)
        first = run(encoder, voxels)
        for _ in range(4):
            assert all(torch.equal(a, b) for a, b in zip(run(encoder, voxels), first, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # spconv's own dense()
def test_matches_dense_convolutions():
    """One strided and one submanifold convolution written with conv3d: weight layout, padding and folding."""
    voxels, coords = random_voxels(200, samples=1)
    dense = torch.zeros(1, 5, 64, 64, 41)
    dense[0, :, coords[:, 1], coords[:, 2], coords[:, 3]] = voxels.T
    encoder = SparseEncoder(SMALL)
    x = spconv.SparseConvTensor(voxels, coords, encoder.sparse_shape, 1)
    encoder(voxels, coords, 1)  # names the algorithm
    first = encoder.conv_input[0]
    ours = first(x).dense()
    expected = nn.functional.conv3d(dense, first.weight.permute(0, 4, 1, 2, 3), padding=1)
    assert torch.allclose(ours, expected * (dense != 0).any(1, keepdim=True), atol=1e-5)

    strided = encoder.encoder_layers.encoder_layer1[2][0]
    expected = nn.functional.conv3d(ours, strided.weight.permute(0, 4, 1, 2, 3), padding=1, stride=2)
    assert torch.allclose(strided(first(x)).dense(), expected, atol=1e-5)


def test_folds_depth_behind_channels():
    encoder = SparseEncoder(SMALL).eval()
    seen = {}
    encoder.conv_out.register_forward_hook(lambda _m, _i, out: seen.update(out=out))
    folded = encoder(*random_voxels(500), 2)
    sparse = seen["out"]
    assert folded.shape == (2, 6 * 2, 8, 8)
    for feature, (sample, x, y, layer) in zip(sparse.features, sparse.indices.tolist(), strict=True):
        assert torch.equal(folded[sample, layer::2, x, y], feature)
    assert folded.count_nonzero() == sparse.features.count_nonzero()


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_hardly_any_points(count, training):
    torch.manual_seed(0)  # with some weights a lone voxel's every ReLU stays shut
    encoder = SparseEncoder(SMALL).train(training)
    before = {k: v.clone() for k, v in encoder.state_dict().items() if "running" in k}
    tensors = run(encoder, random_voxels(count))
    assert tensors[0].shape == (2, 12, 8, 8)
    assert all(torch.isfinite(t).all() for t in tensors)
    assert (tensors[0].abs().sum() > 0) == (count > 0)
    if count == 0:
        assert all(torch.equal(encoder.state_dict()[k], v) for k, v in before.items())


def test_a_single_site_is_normalised_by_running_statistics():
    norm = SiteBatchNorm(3).train()
    site = torch.randn(1, 3)
    assert torch.equal(norm(site), norm.eval()(site))
    assert torch.equal(norm.running_mean, torch.zeros(3))
    many = torch.randn(20, 3)
    assert norm.train()(many).mean(0).abs().max() < 1e-6
    assert norm.running_mean.abs().min() > 0


def test_one_empty_sample_among_others():
    encoder = SparseEncoder(SMALL).eval()
    voxels, coords = random_voxels(300, samples=1)
    coords[:, 0] = 1
    out = encoder(voxels, coords, 3)
    assert not out[0].any()
    assert not out[2].any()
    coords[:, 0] = 0
    assert torch.equal(encoder(voxels, coords, 1)[0], out[1])


def test_input_stays_untouched():
    voxels, coords = random_voxels(300)
    kept = voxels.clone(), coords.clone()
    run(SparseEncoder(SMALL), (voxels, coords))
    assert torch.equal(voxels, kept[0])
    assert torch.equal(coords, kept[1])


def test_wrong_configurations_are_named():
    with pytest.raises(ModelError, match="has 3 stages"):
        SparseEncoder(replace(SMALL, encoder_channels=SMALL.encoder_channels[:3]))
    with pytest.raises(ModelError, match=r"encoder_channels\[1\].*gets 8 channels where 16 is written"):
        SparseEncoder(replace(SMALL, encoder_channels=((4, 4, 8), (16, 16, 8), (8, 8, 12), (12, 12))))


def test_spconv_is_imported_and_used_silently():
    code = (
        "import torch; from fastalter.models.config import LidarConfig as L\n"
        "from fastalter.models.sparse_encoder import SparseEncoder as S\n"
        "S(L(sparse_shape=(16, 16, 41)))(torch.ones(1, 5), torch.zeros(1, 4).int(), 1).sum().backward()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
