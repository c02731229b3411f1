"""Attention with a sliding window around the delegates: each layer keeps its last keys and values in a ring of slots.

The token at position p is in slot p % ring. A ring has the window's slots and a few more, so that a sequence can go
back by as many tokens; these are hidden by a mask. There are three ways through a layer:

- While the window has not been exceeded, every key is seen: custom_sdpa reads what is filled, without a mask.
- After that, a few tokens are written to the ring first, and a mask hides the spare slots.
- Many tokens would overwrite keys that the first of them still sees. So they attend to the ring and, behind it, to
  themselves, and are written afterwards.

cond chooses among them, but may not write. So each call writes twice, before and after, and the first time a call
with many tokens writes all of them to one slot that is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.models.attention import AttentionKind


def cond(which: Tensor, yes: Callable[..., Tensor], no: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """torch.cond for a trace. torch.cond itself compiles both branches before they are traced: twice the time."""
    chosen: Tensor = torch.ops.higher_order.cond(
        which, lambda *values: yes(*values), lambda *values: no(*values), inputs
    )
    return chosen


@dataclass(frozen=True)
class RingCall:
    """What the layers of one call share. Masks: 0 where a key is seen, -inf elsewhere."""

    start: Tensor  # int64 [1]: the first token's position
    within: Tensor  # bool: the window has not been exceeded
    many: Tensor  # bool: the tokens would overwrite what they need
    before: Tensor  # int64 [kv_heads, tokens]: slots to write to before attention
    after: Tensor  # the same, afterwards
    mask: Tensor  # [tokens, ring], for a few tokens
    mask_of_many: Tensor  # [tokens, ring + tokens]


class RingCalls(nn.Module):
    """As make_calls says."""

    def __init__(self, window: int, ring: int, kv_heads: int) -> None:
        super().__init__()
        self.window, self.ring, self.kv_heads = window, ring, kv_heads

    def forward(self, start: Tensor, number: Any, count: Any) -> RingCall:
        token, end = torch.arange(count), start + count
        within = (end <= self.window)[0]
        few = torch.logical_or(end - start <= self.ring - self.window + 1, end <= self.ring)[0]
        many = torch.logical_not(few)
        masked = torch.logical_and(few, torch.logical_not(within))
        position = start + token
        return RingCall(
            start=start,
            within=within,
            many=many,
            before=self.slots(start + torch.where(many, 0, token)),
            after=self.slots(position),
            # Where no layer will read a mask, it is only filled. What a cond returns is overwritten by the next one.
            mask=cond(masked, self.mask, self.no_mask, (start, position)).clone(),
            mask_of_many=cond(many, self.mask_of_many, self.no_mask_of_many, (start, position)).clone(),
        )

    def slots(self, position: Tensor) -> Tensor:
        """The same for each head, [kv_heads, tokens]."""
        return torch.remainder(position, self.ring)[None] + torch.zeros(self.kv_heads, 1, dtype=torch.int64)

    def ages(self, newest: Tensor) -> Tensor:
        """How much earlier than `newest`, [tokens, 1], the token of each slot is. ExecuTorch's remainder of a negative
        number is negative, unlike torch's."""
        return torch.remainder(newest + self.ring - torch.arange(self.ring)[None], self.ring)

    def mask(self, start: Tensor, position: Tensor) -> Tensor:
        """The ring after it was written: a slot has the latest token that fits it and is no later than the query."""
        query = position[:, None]
        age = self.ages(query)
        return seen(torch.logical_and(age < self.window, age <= query))

    def mask_of_many(self, start: Tensor, position: Tensor) -> Tensor:
        """The ring before it is written, then the call's own tokens."""
        query, last = position[:, None], start - 1
        age = self.ages(last[None])
        kept = torch.logical_and(age + (query - last) < self.window, age <= last)
        age = query - position[None]
        return seen(torch.cat([kept, torch.logical_and(age >= 0, age < self.window)], dim=1))

    def no_mask(self, start: Tensor, position: Tensor) -> Tensor:
        return torch.zeros(position.shape[0], self.ring)

    def no_mask_of_many(self, start: Tensor, position: Tensor) -> Tensor:
        return torch.zeros(position.shape[0], self.ring + position.shape[0])


def seen(which: Tensor) -> Tensor:
    """A mask of floats from one of booleans."""
    return torch.where(which, 0.0, float("-inf"))


class RingAttention(nn.Module):
    """(query, key, value, call) -> attended values in the query's shape, with the layer's ring as its state."""

    def __init__(self, kind: AttentionKind, head_dim: int, ring: int) -> None:
        super().__init__()
        self.scale = kind.scale
        for part in ("key", "value"):
            self.register_buffer(part, torch.zeros(kind.kv_heads, ring, 1, head_dim), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, call: RingCall) -> Tensor:
        keys, values = self.get_buffer("key"), self.get_buffer("value")
        self.write(key, value, call.before)
        inputs = (query, keys, values, key, value, call.start, call.many, call.mask, call.mask_of_many)
        attended: Tensor = cond(call.within, self.attend_within, self.attend_beyond, inputs)
        self.write(key, value, call.after)
        return attended

    def write(self, key: Tensor, value: Tensor, slots: Tensor) -> None:
        torch.ops.llama.update_cache_with_indices(key, self.get_buffer("key"), 0, slots)
        torch.ops.llama.update_cache_with_indices(value, self.get_buffer("value"), 0, slots)

    def attend_within(self, query: Tensor, keys: Tensor, values: Tensor, *rest: Tensor) -> Tensor:
        start = rest[2][-1].item()
        torch._check(start >= 0)  # type: ignore[no-untyped-call]
        attended: Tensor = torch.ops.llama.custom_sdpa(query, keys, values, start, None, 0.0, True, self.scale)
        return attended

    def attend_beyond(self, query: Tensor, keys: Tensor, values: Tensor, *rest: Tensor) -> Tensor:
        key, value, _, many, mask, mask_of_many = rest
        inputs = (query, keys, values, key, value, mask, mask_of_many)
        attended: Tensor = cond(many, self.attend_many, self.attend_few, inputs)
        return attended

    def attend_few(self, query: Tensor, keys: Tensor, values: Tensor, *rest: Tensor) -> Tensor:
        return self.masked(query, keys, values, rest[2])

    def attend_many(self, query: Tensor, keys: Tensor, values: Tensor, *rest: Tensor) -> Tensor:
        key, value, _, mask = rest
        return self.masked(query, torch.cat([keys, key], dim=1), torch.cat([values, value], dim=1), mask)

    def masked(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        attended: Tensor = torch.ops.llama.custom_sdpa(query, keys, values, 0, mask, 0.0, False, self.scale)
        return attended
