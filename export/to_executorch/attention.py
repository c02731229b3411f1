"""Attention around the delegates: a layer's cache, and what a call's attentions share. With a window: ring.py.

custom_sdpa takes one mask for all heads. So a block-sparse layer's heads are split: key-value heads whose queries have
the same patterns in the same order are one class with a cache of its own, and each pattern within a class is one call.
With Phi-3-small's 32 heads and stride 8 these are two classes of four calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.models.attention import AttentionKind
from export.models.masks import BlockPattern
from export.models.shape import Config
from export.to_executorch.ring import RingAttention, RingCalls


@dataclass(frozen=True)
class Call:
    """What the layers of one call share. Masks, by number: 0 where a key is seen, -inf elsewhere, [tokens, context]."""

    start: Any  # the first token's position
    masks: Mapping[int, Tensor]


def make_attention(kind: AttentionKind, head_dim: int, context_tokens: int, ring_tokens: int | None) -> nn.Module:
    """(query, key, value, call) -> [1, tokens, heads, head_dim], with the layer's cache as its state. `call` is of the
    type that `make_calls` gives for the same model."""
    if ring_tokens:
        return RingAttention(kind, head_dim, ring_tokens)
    if kind.blocks and kind.blocks.stride > 1 and context_tokens > kind.blocks.dense_tokens:
        return BlockSparseAttention(kind, kind.blocks, head_dim, context_tokens)
    return CachedAttention(kind, head_dim, context_tokens)


def make_calls(config: Config, context_tokens: int, ring_tokens: int | None) -> nn.Module:
    """(start as int64 [1], start as a number, count) -> what the layers of one call share."""
    if ring_tokens:
        assert config.sliding_window
        return RingCalls(config.sliding_window, ring_tokens)
    kinds = [config.attention(layer) for layer in range(config.num_hidden_layers)]
    sparse = next((kind for kind in kinds if kind.blocks and kind.blocks.stride > 1), None)
    if sparse and sparse.blocks:
        return BlockCalls(sparse.blocks, sparse.heads, context_tokens)
    return PlainCalls()


class CachedAttention(nn.Module):
    """Attention whose heads all see every key so far."""

    def __init__(self, kind: AttentionKind, head_dim: int, context_tokens: int) -> None:
        super().__init__()
        self.scale = kind.scale
        for part in ("key", "value"):
            cache = torch.zeros(1, context_tokens, kind.kv_heads, head_dim)
            self.register_buffer(part, cache, persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        keys, values = self.get_buffer("key"), self.get_buffer("value")
        torch.ops.llama.update_cache(key, keys, call.start)
        torch.ops.llama.update_cache(value, values, call.start)
        attended: Tensor = torch.ops.llama.custom_sdpa(query, keys, values, call.start, None, 0.0, True, self.scale)
        return attended


class BlockSparseAttention(nn.Module):
    """The cache of each class of key-value heads is its state."""

    def __init__(self, kind: AttentionKind, blocks: BlockPattern, head_dim: int, context_tokens: int) -> None:
        super().__init__()
        self.scale = kind.scale
        queries = kind.heads // kind.kv_heads
        classes: dict[tuple[int, ...], list[int]] = {}
        for group in range(kind.kv_heads):
            heads = range(group * queries, (group + 1) * queries)
            classes.setdefault(tuple(blocks.shift(head) for head in heads), []).append(group)
        self.groups = list(classes.values())
        # Each call: its class, its mask, and its heads, group by group.
        self.calls = [
            (number, shift + 1, [group * queries + i for group in groups for i in range(queries) if shifts[i] == shift])
            for number, (shifts, groups) in enumerate(classes.items())
            for shift in dict.fromkeys(shifts)
        ]
        order = torch.tensor([head for _, _, heads in self.calls for head in heads])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        for number, groups in enumerate(self.groups):
            self.register_buffer(f"groups_{number}", torch.tensor(groups), persistent=False)
            for part in ("key", "value"):
                cache = torch.zeros(1, context_tokens, len(groups), head_dim)
                self.register_buffer(f"{part}_{number}", cache, persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        start, masks = call.start, call.masks
        for number in range(len(self.groups)):
            groups = self.get_buffer(f"groups_{number}")
            for part, new in (("key", key), ("value", value)):
                torch.ops.llama.update_cache(new.index_select(2, groups), self.get_buffer(f"{part}_{number}"), start)
        sizes = [len(heads) for _, _, heads in self.calls]
        parts = torch.split(query.index_select(2, self.get_buffer("order")), sizes, dim=2)
        attended = []
        for (number, mask, _), some in zip(self.calls, parts, strict=True):
            keys, values = self.get_buffer(f"key_{number}"), self.get_buffer(f"value_{number}")
            attended.append(torch.ops.llama.custom_sdpa(some, keys, values, start, masks[mask], 0.0, False, self.scale))
        return torch.cat(attended, dim=2).index_select(2, self.get_buffer("back"))


class PlainCalls(nn.Module):
    """Without a mask."""

    def forward(self, position: Tensor, start: Any, count: Any) -> Call:
        return Call(start, {})


class BlockCalls(nn.Module):
    """A mask for each pattern of heads, numbered from 1 (dense layers have none); none at all where
    nothing is left out within the context."""

    def __init__(self, blocks: BlockPattern, heads: int, context_tokens: int) -> None:
        super().__init__()
        self.blocks, self.context_tokens = blocks, context_tokens
        self.shifts = sorted({blocks.shift(head) for head in range(heads)})
        block = torch.arange(context_tokens) // blocks.size
        for shift in self.shifts:
            kept = torch.where(blocks.keeps(shift, block), 0.0, float("-inf"))
            self.register_buffer(f"kept_{shift}", kept[None], persistent=False)

    def forward(self, position: Tensor, start: Any, count: Any) -> Call:
        blocks = self.blocks
        if self.context_tokens <= blocks.dense_tokens:
            return Call(start, {})
        query, key = torch.arange(count)[:, None] + start, torch.arange(self.context_tokens)[None, :]
        past = torch.where(key <= query, 0.0, float("-inf"))
        first = (torch.div(query, blocks.size, rounding_mode="floor") - (blocks.local - 1)) * blocks.size
        near = torch.where(key >= first, past, float("-inf"))
        kept = {shift: self.get_buffer(f"kept_{shift}") for shift in self.shifts}
        return Call(start, {shift + 1: torch.maximum(near, past + mask) for shift, mask in kept.items()})
