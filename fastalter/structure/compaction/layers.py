"""Layers that stand in where channels or norms have left: a norm that still counts them, attention of another width, a
sparse convolution with a bias.

They keep the parameter names of what they stand for, so state dicts fit, and are subclasses of it.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastalter.errors import ModelError


class CountedLayerNorm(nn.LayerNorm):
    """Layer norm over the channels that are left of `count`: those that are gone count as zeros.

    With C channels left of C0, mean = sum x / C0 and variance = (sum (x - mean)^2 + (C0 - C) mean^2) / C0: what
    LayerNorm computes over x padded with zeros to C0 channels, at the places that are left.
    """

    count: int

    @classmethod
    def stand_in(cls, norm: nn.LayerNorm, count: int) -> None:
        """Turn a layer norm into this one, in place: whoever holds the module goes on holding it.

        One that stands in already goes on counting the channels that it had at first.

        Raises:
            ModelError: see `check_norm`.
        """
        check_norm(norm)
        if isinstance(norm, cls):
            return
        norm.__class__ = cls
        cast(CountedLayerNorm, norm).count = count

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] of any floating dtype; low precision is computed in float32, as torch does.

        The result has the dtype of x, but float32 under CUDA's autocast: there torch's norm is among the ops that
        leave it.
        """
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = wide.sum(-1, keepdim=True) / self.count
        centred = wide - mean
        gone = self.count - x.shape[-1]
        variance = ((centred * centred).sum(-1, keepdim=True) + gone * mean * mean) / self.count
        y = centred * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y if x.is_cuda and torch.is_autocast_enabled("cuda") else y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, count={self.count}"


class CompactAttention(nn.MultiheadAttention):
    """torch's multi-head attention where heads times their width is not the stream's width.

    The inner width is `num_heads * head_dim`; `embed_dim` is that of the queries. Arguments and results are torch's,
    except that weights are those of the heads that are left, alone or averaged. It never takes torch's fast path,
    which knows one width only.

    in_proj_weight [3 * inner, embed_dim], or q/k/v_proj_weight [inner, embed_dim / kdim / vdim];
    out_proj.weight [embed_dim, inner].
    """

    @classmethod
    def stand_in(cls, attention: nn.MultiheadAttention) -> None:
        """Turn torch's module into this one, in place: whoever holds it goes on holding it.

        Raises:
            ModelError: see `check_attention`.
        """
        check_attention(attention)
        attention.__class__ = cls
        attention._qkv_same_embed_dim = False  # what torch's encoder layers ask before they take their fast path

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See torch.nn.MultiheadAttention. A three-dimensional attn_mask has one entry per batch and head left.

        Raises:
            ModelError: is_causal without attn_mask, or a mask that does not fit.
        """
        if is_causal and attn_mask is None:
            raise ModelError("attention: is_causal only says what attn_mask is; give attn_mask as well")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._projected(query, key, value)
        mask = self._merged(attn_mask, key_padding_mask, q, key.shape[1], k.shape[2])
        attended, weights = self._attend(q, k, v, mask, need_weights)
        output: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, L, head_dim], keys and values [B, heads, S, head_dim] with what is added to them."""
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = cast("tuple[Any, ...]", (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight))
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (F.linear(x, weight, bias) for x, weight, bias in inputs)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return self._heads(q), self._heads(k), self._heads(v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
        logits = q * self.head_dim**-0.5 @ k.transpose(-1, -2)
        weights = F.dropout(torch.softmax(logits if mask is None else logits + mask, -1), dropout)
        return weights @ v, weights

    def _merged(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, given: int, length: int
    ) -> Tensor | None:
        """Both masks as one to add to the logits; `length` - `given` keys were added, and are seen by all."""
        batch, heads, queries, _ = q.shape
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q)
            if mask.dim() == 3 and len(mask) == batch * heads:
                mask = mask.view(batch, heads, *mask.shape[1:])
            elif mask.dim() != 2:
                wanted = f"({queries}, {given}) or ({batch * heads}, {queries}, {given})"
                raise ModelError(
                    f"attention: attn_mask is {tuple(attn_mask.shape)}, but must be {wanted}: {heads} heads are left"
                )
        if padding is not None:
            of_keys = _additive(padding, q)[:, None, None]
            mask = of_keys if mask is None else mask + of_keys
        return mask if mask is None or length == given else F.pad(mask, (0, length - given))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """True means masked out; a floating mask is added as it is."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


class _BiasOnCPU:
    """Mixed into a class of spconv's: on the CPU, in eval mode, spconv 2.3 has no kernel that adds a bias."""

    def _conv_forward(
        self, training: bool, x: Any, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any
    ) -> Any:
        run = cast(Any, super())._conv_forward
        if bias is None or x.features.is_cuda:
            return run(training, x, weight, bias, *args, **kwargs)
        y = run(training, x, weight, None, *args, **kwargs)
        return y.replace_feature(y.features + bias)


def add_bias_on_cpu(conv: nn.Module) -> None:
    """Let a sparse convolution with a bias run on the CPU as well, in place."""
    if not isinstance(conv, _BiasOnCPU):
        kind: Any = type(conv)
        conv.__class__ = _with_bias(kind)


@functools.cache
def _with_bias(kind: Any) -> Any:
    return type(kind.__name__, (_BiasOnCPU, kind), {"__module__": kind.__module__})


def check_norm(norm: nn.Module | None) -> None:
    """Raises ModelError unless `CountedLayerNorm` can stand in for the module."""
    if isinstance(norm, CountedLayerNorm):
        return
    _check_forward(norm, nn.LayerNorm)
    if isinstance(norm, nn.LayerNorm) and len(norm.normalized_shape) != 1:
        raise ModelError(f"a layer norm over {len(norm.normalized_shape)} axes cannot lose channels; keep them all")


def check_attention(attention: nn.Module | None) -> None:
    """Raises ModelError unless `CompactAttention` can stand in for the module."""
    if not isinstance(attention, CompactAttention):
        _check_forward(attention, nn.MultiheadAttention)


def _check_forward(module: nn.Module | None, known: type[nn.Module]) -> None:
    """Of a subclass with a forward of its own nobody knows what it computes."""
    if not isinstance(module, known) or type(module).forward is not known.forward:
        found = "nothing" if module is None else f"a {type(module).__name__}"
        raise ModelError(f"{found} is no plain {known.__name__}: channels cannot leave what it computes; keep them all")
