"""Swin transformer, the hierarchical image backbone, with the module names of mmdetection.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021. Maps stay
channels-last [B, H, W, C] between the patch embedding and the outputs. What differs from other implementations, and
published weights depend on: a patch merge orders channels as `nn.Unfold` does (channel-major); maps are zero-padded at
the right and bottom to whole windows after the norm, and the padding takes part in attention; the shift stays on even
where a map is no larger than one window.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastalter.models.config import SwinConfig

_MASKED = -100.0
"""Added to the attention logits of pairs that the cyclic shift brought together from far apart."""


class DropPath(nn.Dropout):
    """Stochastic depth: in training, drop a residual branch per sample. A `Dropout` by type, so that whatever turns
    dropout off turns this off too."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device) >= self.p
        return x * keep / (1.0 - self.p)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad [B, H, W, C] at the right and bottom until H and W are multiples."""
    height, width = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -width % multiple, 0, -height % multiple))


def to_windows(x: Tensor, size: int) -> Tensor:
    """[B, H, W, C] with whole windows -> [B * windows, size * size, C], windows in row-major order."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size, size, width // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size * size, channels)


def from_windows(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // size, width // size, size, size, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def relative_position_index(size: int) -> Tensor:
    """int64 [size^2, size^2]: the row of the bias table for each (query, key) pair of a window."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    code = ((2 * size - 1) * y + x).flatten()
    return code[:, None] + code.flip(0)[None, :]


def shift_mask(height: int, width: int, size: int, shift: int, like: Tensor) -> Tensor:
    """[windows, 1, size^2, size^2]: 0 where a pair was adjacent before the cyclic shift, `_MASKED` where it was not."""

    def band(length: int) -> Tensor:
        position = torch.arange(length, device=like.device)
        return (position >= length - size).long() + (position >= length - shift).long()

    region = 3 * band(height)[:, None] + band(width)[None, :]
    windows = to_windows(region[None, :, :, None], size).squeeze(-1)
    apart = windows[:, None, None, :] != windows[:, None, :, None]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, _MASKED)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [B * windows, N, C]; mask: [windows, 1, N, N], added to the logits."""
        count, length = x.shape[:2]
        width = self.qkv.out_features // (3 * self.num_heads)  # of a head; the heads need not add up to C
        qkv = self.qkv(x).view(count, length, 3, self.num_heads, width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query = query * width**-0.5
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(length, length, self.num_heads).permute(2, 0, 1)
        if mask is not None:
            bias = (bias + mask).repeat(count // mask.shape[0], 1, 1, 1)
        attention = (query @ key.transpose(-2, -1) + bias).softmax(-1)
        out: Tensor = self.proj((attention @ value).transpose(1, 2).flatten(2))
        return out


class ShiftedWindowAttention(nn.Module):
    """Window attention on a map [B, H, W, C], its windows displaced by `shift` pixels."""

    def __init__(self, channels: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.w_msa = WindowAttention(channels, num_heads, window_size)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window_size)
        padded_height, padded_width = x.shape[1:3]
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(padded_height, padded_width, self.window_size, self.shift, x)
        windows = self.w_msa(to_windows(x, self.window_size), mask)
        x = from_windows(windows, self.window_size, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(channels, hidden), nn.GELU()), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, channels: int, num_heads: int, config: SwinConfig, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        shift = config.window_size // 2 if shifted else 0
        self.attn = ShiftedWindowAttention(channels, num_heads, config.window_size, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, config.mlp_ratio * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.ffn(self.norm2(x)))
        return out


class PatchMerging(nn.Module):
    """Halve a map: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), out]; a patch's four pixels adjoin per channel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, 2)
        batch, height, width, channels = x.shape
        patches = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 5, 2, 4)
        out: Tensor = self.reduction(self.norm(patches.flatten(3)))
        return out


class PatchEmbed(nn.Module):
    """Non-overlapping 4x4 patches: [B, 3, H, W] -> [B, ceil(H/4), ceil(W/4), C]."""

    size = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, channels, self.size, stride=self.size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % self.size, 0, -height % self.size))
        out: Tensor = self.norm(self.projection(images).permute(0, 2, 3, 1))
        return out


class SwinStage(nn.Module):
    """Blocks with plain and shifted windows in turn; all stages but the last end in a patch merge."""

    downsample: PatchMerging | None

    def __init__(self, channels: int, num_heads: int, config: SwinConfig, drop_paths: list[float], last: bool) -> None:
        super().__init__()
        blocks = [SwinBlock(channels, num_heads, config, i % 2 == 1, rate) for i, rate in enumerate(drop_paths)]
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if last else PatchMerging(channels, 2 * channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map for the next stage, and this stage's own map before the merge."""
        for block in self.blocks:
            x = block(x)
        return (x if self.downsample is None else self.downsample(x)), x


class SwinTransformer(nn.Module):
    """Images [B, 3, H, W] -> one normalised map [B, C_i, H_i, W_i] per output stage, strides 4 * 2^i rounded up."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.out_indices = config.out_indices
        self.patch_embed = PatchEmbed(config.embed_dims)
        channels = [config.embed_dims * 2**i for i in range(len(config.depths))]
        rates = torch.linspace(0.0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        ends = [sum(config.depths[:i]) for i in range(len(config.depths) + 1)]
        self.stages = nn.ModuleList(
            SwinStage(width, heads, config, rates[start:end], last=width == channels[-1])
            for width, heads, (start, end) in zip(channels, config.num_heads, pairwise(ends), strict=True)
        )
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(channels[i]))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        outputs = []
        for i, stage in enumerate(self.stages):
            x, out = stage(x)
            if i in self.out_indices:
                outputs.append(self.get_submodule(f"norm{i}")(out).permute(0, 3, 1, 2).contiguous())
        return outputs


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
