"""The layers that stand in where channels have left, against torch's over zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastalter.errors import ModelError
from fastalter.structure.compaction.layers import CompactAttention, CountedLayerNorm

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def norms(count=12, left=5, dtype=torch.float64, **settings):
    """torch's norm over `count` channels; the counted one over the first `left`, with the same weights."""
    torch.manual_seed(0)
    whole, counted = (nn.LayerNorm(size, dtype=dtype, **settings) for size in (count, left))
    for parameter, small in zip(whole.parameters(), counted.parameters(), strict=True):
        nn.init.normal_(parameter)
        small.data = parameter.detach()[:left].clone()
    CountedLayerNorm.stand_in(counted, count)
    return whole, counted


@pytest.mark.parametrize("left", [1, 5, 12])
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"elementwise_affine": False}, {"eps": 0.1}])
def test_norm_equals_layer_norm_over_x_padded_with_zeros(left, settings):
    whole, counted = norms(left=left, **settings)
    x = 3 * torch.randn(4, 7, left, dtype=torch.float64) + 10
    padded = nn.functional.pad(x, (0, 12 - left))
    torch.testing.assert_close(counted(x), whole(padded)[..., :left], **EXACT)


def test_norm_gives_gradients_of_layer_norm_over_x_padded_with_zeros():
    whole, counted = norms()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 5, dtype=torch.float64)
    (ours,) = torch.autograd.grad((counted(x) * weights).sum(), x)
    (theirs,) = torch.autograd.grad((whole(nn.functional.pad(x, (0, 7)))[..., :5] * weights).sum(), x)
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_norm_computes_low_precision_in_float32_as_torch_does():
    whole, counted = norms(count=2048, left=1024, dtype=torch.bfloat16)
    x = 5 + torch.randn(4, 1024).bfloat16()
    expected = whole.double()(nn.functional.pad(x, (0, 1024)).double())[..., :1024]
    assert counted(x).dtype == torch.bfloat16
    torch.testing.assert_close(counted(x).double(), expected, rtol=2**-7, atol=2**-7)


def test_norm_under_autocast_gives_what_torchs_gives():
    whole, counted = norms(dtype=torch.float32)
    x = torch.randn(4, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = counted(x), whole(nn.functional.pad(x, (0, 7)))[..., :5]
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)  # compares dtypes too


def test_norm_shows_its_count_and_refuses_what_it_cannot_be():
    assert "count=12" in repr(norms()[1])
    with pytest.raises(ModelError, match="over 2 axes"):
        CountedLayerNorm.stand_in(nn.LayerNorm((3, 4)), 12)
    with pytest.raises(ModelError, match="a BatchNorm1d is no plain LayerNorm"):
        CountedLayerNorm.stand_in(nn.BatchNorm1d(3), 12)  # type: ignore[arg-type]


# ---- attention -------------------------------------------------------------------------------------------------------

STREAM, HEADS, WIDTH = 12, 4, 3


def attention(**settings):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(STREAM, HEADS, dtype=torch.float64, **settings).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def inputs(module, queries=5, keys=6):
    shapes = [(queries, 2, STREAM), (keys, 2, module.kdim), (keys, 2, module.vdim)]
    found = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return [x.transpose(0, 1) for x in found] if module.batch_first else found


def stood_in(module):
    other = copy.deepcopy(module)
    CompactAttention.stand_in(other)
    return other


def masks(kind):
    generator = torch.Generator().manual_seed(1)
    some = torch.rand(5, 6, generator=generator) < 0.4
    some[:, 0] = False
    padding = torch.tensor([[False] * 6, [False, True, False, False, True, True]])
    return {
        "none": {},
        "bool": {"attn_mask": some},
        "float": {"attn_mask": torch.randn(5, 6, dtype=torch.float64, generator=generator)},
        "by_head": {"attn_mask": torch.randn(2 * HEADS, 5, 6, dtype=torch.float64, generator=generator)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": some, "key_padding_mask": padding},
        "causal": {"attn_mask": torch.ones(5, 6, dtype=torch.bool).triu(1), "is_causal": True},
    }[kind]


@pytest.mark.parametrize("mask", ["none", "bool", "float", "by_head", "padding", "both", "causal"])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"kdim": 7, "vdim": 9},
        {"add_bias_kv": True},
        {"add_zero_attn": True, "batch_first": True},
    ],
)
def test_attention_with_all_its_heads_is_torchs(settings, need_weights, mask):
    theirs = attention(**settings)
    ours, x = stood_in(theirs), inputs(theirs)
    added = theirs.bias_k is not None or theirs.add_zero_attn
    for average in (True, False):
        call = {"need_weights": need_weights, "average_attn_weights": average, **masks(mask)}
        if added:
            call.pop("is_causal", None)  # with the hint torch hides the added keys, and without it it does not
        (output, weights), (expected, expected_weights) = ours(*x, **call), theirs(*x, **call)
        torch.testing.assert_close(output, expected, **EXACT)
        if need_weights:
            torch.testing.assert_close(weights, expected_weights, **EXACT)
        assert (weights is None) == (not need_weights)


def test_attention_without_a_batch_is_torchs():
    theirs = attention(batch_first=True)
    x = [torch.randn(n, STREAM, dtype=torch.float64) for n in (5, 6, 6)]
    padding = torch.tensor([False, True, False, False, False, False])
    expected, expected_weights = theirs(*x, key_padding_mask=padding)
    output, weights = stood_in(theirs)(*x, key_padding_mask=padding)
    torch.testing.assert_close((output, weights), (expected, expected_weights), **EXACT)


@pytest.mark.parametrize("settings", [{}, {"kdim": 7, "vdim": 9, "add_bias_kv": True}])
def test_attention_with_fewer_heads_and_a_narrower_stream_is_torchs_with_zeros(settings):
    whole = attention(**settings)
    heads = [WIDTH * h + i for h in (1, 2) for i in range(WIDTH)]
    stream, thirds = [0, 2, 3, 7, 11], [STREAM * t + p for t in range(3) for p in heads]
    own = ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if settings else []
    axes = {name: (heads, stream if name[0] == "q" else None) for name in own} or {"in_proj_weight": (thirds, stream)}
    axes |= {"in_proj_bias": (thirds,), "out_proj.weight": (stream, heads), "out_proj.bias": (stream,)}
    axes |= {name: (None, None, heads) for name in ("bias_k", "bias_v") if settings}
    small = stood_in(whole)
    small.num_heads, small.embed_dim = 2, len(stream)
    for name, kept in axes.items():
        owner, _, last = name.rpartition(".")
        parameter = whole.get_parameter(name)
        value = parameter.detach().clone()
        for axis, positions in enumerate(kept):
            if positions is not None:
                value = value.index_select(axis, torch.tensor(positions))
                gone = [i for i in range(parameter.shape[axis]) if i not in positions]
                parameter.data.index_fill_(axis, torch.tensor(gone), 0)
        setattr(small.get_submodule(owner), last, nn.Parameter(value))
    query, key, value = inputs(whole)
    expected = whole(query, key, value, need_weights=False)[0][..., stream]
    narrow = [query[..., stream], key, value] if settings else [x[..., stream] for x in (query, key, value)]
    torch.testing.assert_close(small(*narrow, need_weights=False)[0], expected, **EXACT)
    torch.testing.assert_close(small(*narrow)[0], expected, **EXACT)


def test_attention_drops_weights_in_training_alone():
    module = stood_in(attention(dropout=0.5))
    x = inputs(module)
    for need_weights in (False, True):
        still = module(*x, need_weights=need_weights)[0]
        torch.testing.assert_close(module(*x, need_weights=need_weights)[0], still, rtol=0, atol=0)
        assert not torch.allclose(module.train()(*x, need_weights=need_weights)[0], still)
        module.eval()


def test_attention_refuses_masks_that_do_not_fit_and_modules_of_another_kind():
    module = stood_in(attention())
    x = inputs(module)
    with pytest.raises(ModelError, match=r"attn_mask is \(6, 5, 6\), but must be \(5, 6\) or \(8, 5, 6\): 4 heads"):
        module(*x, attn_mask=torch.zeros(6, 5, 6))
    with pytest.raises(ModelError, match="give attn_mask as well"):
        module(*x, is_causal=True)
    with pytest.raises(ModelError, match="a Linear is no plain MultiheadAttention"):
        CompactAttention.stand_in(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("padded", [False, True])
def test_encoder_layers_do_not_take_the_fast_path_past_it(padded):
    """In eval mode without gradients torch's layers would read the weights themselves, as of one width."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(STREAM, HEADS, 8, dropout=0.0, batch_first=True)
    layer = layer.double().eval()
    other = copy.deepcopy(layer)
    CompactAttention.stand_in(other.self_attn)
    other.self_attn.num_heads = 2  # torch's kernel would take them for heads of width 6, and refuse odd numbers
    rows = [STREAM * third + i for third in range(3) for i in range(2 * WIDTH)]
    for name in ("in_proj_weight", "in_proj_bias"):
        setattr(other.self_attn, name, nn.Parameter(getattr(other.self_attn, name).detach()[rows]))
    other.self_attn.out_proj.weight = nn.Parameter(other.self_attn.out_proj.weight.detach()[:, : 2 * WIDTH])
    layer.self_attn.out_proj.weight.data[:, 2 * WIDTH :] = 0
    x = torch.randn(2, 5, STREAM, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]]) if padded else None
    with torch.no_grad():
        ours = other(x, src_key_padding_mask=padding)
    expected = layer.train()(x, src_key_padding_mask=padding)  # dropout is 0; and training keeps it off the fast path
    torch.testing.assert_close(ours, expected, **EXACT)
