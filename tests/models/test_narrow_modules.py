"""Modules whose inner width is not what their configuration said: they go by their weights, as narrowed models need."""

from __future__ import annotations

import torch
from torch import nn

from fastalter.models import config_of
from fastalter.models.sparse_encoder import SparseEncoder
from fastalter.models.swin import WindowAttention
from fastalter.models.transformer import Attention
from fastalter.models.view_transform import DepthLSS

CHANNELS, HEADS, WIDTH = 12, 4, 3
HEADS_KEPT = [0, 3]
KEPT = [WIDTH * head + i for head in HEADS_KEPT for i in range(WIDTH)]
"""Positions of the kept heads among the channels of queries, keys or values."""


def cut(parameter, axis, positions):
    return nn.Parameter(parameter.detach().index_select(axis, torch.tensor(positions)).clone())


def zero_rest(parameter, axis, positions):
    kept = torch.zeros(parameter.shape[axis], dtype=torch.bool)
    kept[positions] = True
    parameter.data.index_fill_(axis, (~kept).nonzero().flatten(), 0)


def in_thirds(positions):
    return [third * CHANNELS + position for third in range(3) for position in positions]


def test_decoder_attention_of_fewer_heads_equals_the_one_with_the_other_heads_zeroed():
    torch.manual_seed(0)
    attention = Attention(CHANNELS, HEADS, dropout=0.0).double()
    nn.init.normal_(attention.in_proj_bias)
    query, memory = torch.randn(2, 5, CHANNELS, dtype=torch.float64), torch.randn(2, 7, CHANNELS, dtype=torch.float64)
    narrow = Attention(CHANNELS, HEADS, dropout=0.0).double()
    narrow.load_state_dict(attention.state_dict())
    narrow.in_proj_weight = cut(narrow.in_proj_weight, 0, in_thirds(KEPT))
    narrow.in_proj_bias = cut(narrow.in_proj_bias, 0, in_thirds(KEPT))
    narrow.out_proj.weight = cut(narrow.out_proj.weight, 1, KEPT)
    narrow.num_heads = len(HEADS_KEPT)
    for parameter in (attention.in_proj_weight, attention.in_proj_bias):
        zero_rest(parameter, 0, in_thirds(KEPT))
    zero_rest(attention.out_proj.weight, 1, KEPT)
    torch.testing.assert_close(narrow(query, memory), attention(query, memory), rtol=1e-12, atol=1e-12)


def test_window_attention_of_fewer_heads_equals_the_one_with_the_other_heads_zeroed():
    torch.manual_seed(0)
    attention = WindowAttention(CHANNELS, HEADS, window_size=3).double()
    nn.init.normal_(attention.relative_position_bias_table)
    nn.init.normal_(attention.qkv.bias)
    x, mask = torch.randn(4, 9, CHANNELS, dtype=torch.float64), torch.randn(2, 1, 9, 9, dtype=torch.float64)
    narrow = WindowAttention(CHANNELS, HEADS, window_size=3).double()
    narrow.load_state_dict(attention.state_dict())
    narrow.qkv = nn.Linear(CHANNELS, 3 * len(KEPT), dtype=torch.float64)
    narrow.qkv.weight = cut(attention.qkv.weight, 0, in_thirds(KEPT))
    narrow.qkv.bias = cut(attention.qkv.bias, 0, in_thirds(KEPT))
    narrow.proj.weight = cut(attention.proj.weight, 1, KEPT)
    narrow.relative_position_bias_table = cut(attention.relative_position_bias_table, 1, HEADS_KEPT)
    narrow.num_heads = len(HEADS_KEPT)
    zero_rest(attention.qkv.weight, 0, in_thirds(KEPT))
    zero_rest(attention.qkv.bias, 0, in_thirds(KEPT))
    zero_rest(attention.proj.weight, 1, KEPT)
    torch.testing.assert_close(narrow(x, mask), attention(x, mask), rtol=1e-12, atol=1e-12)


def test_view_transform_takes_its_context_width_from_its_last_convolution():
    camera = config_of("bevfusion-tiny").camera
    view = DepthLSS(camera.view_transform, camera.neck_channels, camera.image_size, camera.feature_stride)
    assert view.out_channels == camera.view_transform.out_channels
    last = view.depthnet[-1]
    last.weight = nn.Parameter(last.weight.detach()[:-3].clone())
    last.bias = nn.Parameter(last.bias.detach()[:-3].clone())
    last.out_channels -= 3
    height, width = (size // camera.feature_stride for size in camera.image_size)
    features = torch.randn(1, 2, camera.neck_channels, height, width)
    logits, context = view._predict(features, torch.zeros(1, 2, 1, *camera.image_size))
    assert logits.shape[2] == view.depth_bins
    assert context.shape[2] == view.out_channels == camera.view_transform.out_channels - 3


def test_sparse_encoder_takes_the_width_of_an_empty_map_from_its_last_convolution():
    lidar = config_of("bevfusion-tiny").lidar
    encoder = SparseEncoder(lidar)
    assert encoder.output_channels == lidar.output_channels
    encoder.conv_out[0].out_channels -= 5
    empty = encoder(torch.zeros(0, lidar.in_channels), torch.zeros(0, 4, dtype=torch.int32), 1)
    assert empty.shape[1] == (lidar.output_channels - 5) * encoder.out_shape[2]
