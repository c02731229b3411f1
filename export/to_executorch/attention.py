"""Attention around the delegates: a layer's cache, and what a call's attentions share. With a window: ring.py.

Each key-value head is a sequence of a batch of its own, with the heads that query it. So its keys lie one behind the
other in memory: with all heads of a token side by side, as is usual, a token of Phi-3-mini after 3,584 others took a
quarter more time (docs/benchmarks.md). The delegates turn what they give and take.

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
    """(query, key, value, call) -> attended values in the query's shape, [kv_heads, tokens, heads of each, head_dim],
    with the layer's cache as its state. `call` is of the type that `make_calls` gives for the same model."""
    if ring_tokens:
        return RingAttention(kind, head_dim, ring_tokens)
    if kind.blocks and kind.blocks.stride > 1 and context_tokens > kind.blocks.dense_tokens:
        return BlockSparseAttention(kind, kind.blocks, head_dim, context_tokens)
    return CachedAttention(kind, head_dim, context_tokens)


def make_calls(config: Config, context_tokens: int, ring_tokens: int | None) -> nn.Module:
    """(start as int64 [1], start as a number, count) -> what the layers of one call share."""
    if ring_tokens:
        assert config.sliding_window
        return RingCalls(config.sliding_window, ring_tokens, config.num_key_value_heads)
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
            cache = torch.zeros(kind.kv_heads, context_tokens, 1, head_dim)
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
        # Of each class its calls: the mask, and which of a group's heads.
        self.calls = [
            [(shift + 1, [head for head in range(queries) if shifts[head] == shift]) for shift in dict.fromkeys(shifts)]
            for shifts in classes
        ]
        self.indices("back", [group for groups in self.groups for group in groups], inverse=True)
        for number, groups in enumerate(self.groups):
            self.indices(f"groups_{number}", groups)
            self.indices(f"back_{number}", [head for _, heads in self.calls[number] for head in heads], inverse=True)
            for mask, of_each in self.calls[number]:
                self.indices(f"heads_{number}_{mask}", of_each)
            for part in ("key", "value"):
                cache = torch.zeros(len(groups), context_tokens, 1, head_dim)
                self.register_buffer(f"{part}_{number}", cache, persistent=False)

    def indices(self, name: str, numbers: list[int], *, inverse: bool = False) -> None:
        """A buffer for index_select, or for what undoes it."""
        order = torch.tensor(numbers)
        self.register_buffer(name, order.argsort() if inverse else order, persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        classes = []
        for number, calls in enumerate(self.calls):
            groups = self.get_buffer(f"groups_{number}")
            caches = [self.get_buffer(f"{part}_{number}") for part in ("key", "value")]
            for new, cache in zip((key, value), caches, strict=True):
                torch.ops.llama.update_cache(new.index_select(0, groups), cache, call.start)
            queries = query.index_select(0, groups)
            attended = []
            for mask, _ in calls:
                some = queries.index_select(2, self.get_buffer(f"heads_{number}_{mask}"))
                attended.append(
                    torch.ops.llama.custom_sdpa(some, *caches, call.start, call.masks[mask], 0.0, False, self.scale)
                )
            classes.append(torch.cat(attended, dim=2).index_select(2, self.get_buffer(f"back_{number}")))
        return torch.cat(classes, dim=0).index_select(0, self.get_buffer("back"))


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
