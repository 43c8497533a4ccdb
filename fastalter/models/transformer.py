"""The decoder layer of the TransFusion head. Module names give the keys of the published checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PositionEmbedding(nn.Module):
    """Learned embedding of map positions [B, N, 2], in cells: [B, N, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1), nn.BatchNorm1d(channels), nn.ReLU(inplace=True), nn.Conv1d(channels, channels, 1)
        )

    def forward(self, positions: Tensor) -> Tensor:
        embedding: Tensor = self.position_embedding_head(positions.transpose(1, 2))
        return embedding.transpose(1, 2)


class Attention(nn.MultiheadAttention):
    """Multi-head attention written out, with the dropout of its weights as a module that can be switched off alone.

    Parameters, keys and initialisation are torch's.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__(channels, heads, batch_first=True)
        self.weights_dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:  # type: ignore[override]
        """query [B, Q, channels] attends to memory [B, K, channels], which is key and value: [B, Q, channels]."""
        inner = self.num_heads * self.head_dim  # which need not be the stream's width
        q_weight, kv_weight = self.in_proj_weight.tensor_split([inner])
        q_bias, kv_bias = self.in_proj_bias.tensor_split([inner])
        q = self._heads(nn.functional.linear(query, q_weight, q_bias)) * self.head_dim**-0.5
        key, value = nn.functional.linear(memory, kv_weight, kv_bias).chunk(2, -1)
        weights = torch.softmax(q @ self._heads(key).transpose(-1, -2), -1)
        attended = self.weights_dropout(weights) @ self._heads(value)
        merged: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return merged

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, heads * width] as [B, heads, N, width]."""
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Proposals attend to each other, then to the map; positions are embedded into queries, keys and values alike."""

    def __init__(self, channels: int, heads: int, ffn_channels: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(channels, heads, dropout)
        self.multihead_attn = Attention(channels, heads, dropout)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.dropout3 = nn.Dropout(dropout)
        self.self_posembed = PositionEmbedding(channels)
        self.cross_posembed = PositionEmbedding(channels)

    def forward(self, query: Tensor, memory: Tensor, query_pos: Tensor, memory_pos: Tensor) -> Tensor:
        """query [B, P, C] at query_pos [B, P, 2], memory [B, N, C] at memory_pos [B, N, 2]: the refined query."""
        query_embedding = self.self_posembed(query_pos)
        memory = memory + self.cross_posembed(memory_pos)
        embedded = query + query_embedding
        query = self.norm1(query + self.dropout1(self.self_attn(embedded, embedded)))
        query = self.norm2(query + self.dropout2(self.multihead_attn(query + query_embedding, memory)))
        hidden = self.dropout(nn.functional.relu(self.linear1(query)))
        refined: Tensor = self.norm3(query + self.dropout3(self.linear2(hidden)))
        return refined
