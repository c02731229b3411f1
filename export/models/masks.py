"""Which keys each query sees: the causal mask with its window, and Phi-3-small's blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def causal_mask(start: int, tokens: int, end: int, window: int) -> Tensor:
    """True where a query at start..start+tokens may see a key at 0..end; `window` in tokens, -1 for all."""
    query, key = torch.arange(start, start + tokens)[:, None], torch.arange(end)[None, :]
    visible = key <= query
    return visible & (key > query - window) if window > 0 else visible


@dataclass(frozen=True)
class BlockPattern:
    """A query sees the last `local` blocks of `size` keys, its own included, and of the older ones each `stride`-th,
    counted from a block that is `step` further on in every next head."""

    size: int
    local: int
    stride: int
    step: int

    @property
    def dense_tokens(self) -> int:
        """Up to here nothing is left out."""
        return self.size * self.local

    def dense(self) -> BlockPattern:
        """The pattern that leaves no block out, which Phi-3-small's dense layers have."""
        return replace(self, stride=1, step=0)

    def shift(self, head: int) -> int:
        """What tells heads apart: those with the same shift see the same blocks."""
        return head * self.step % self.stride

    def keeps(self, shift: int | Tensor, block: Tensor) -> Tensor:
        """True for the old blocks that are seen."""
        return (block + shift + 1) % self.stride == 0

    def visible(self, heads: int, start: int, tokens: int, end: int) -> Tensor:
        """True where a query at start..start+tokens may see a key at 0..end: bool [heads, tokens, end]."""
        query_block = torch.arange(start, start + tokens)[:, None] // self.size
        key_block = torch.arange(end)[None, :] // self.size
        shifts = torch.tensor([self.shift(head) for head in range(heads)])[:, None, None]
        local = query_block - key_block < self.local
        return causal_mask(start, tokens, end, -1) & (local | self.keeps(shifts, key_block))

    def layouts(self, heads: int, tokens: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The blocks that each row of blocks sees, as SparseAttention takes them: [layouts, blocks + 1] says where each
        row begins in [layouts, most], which lists them. A head's layout is its number modulo how many there are."""
        period = self.stride // math.gcd(self.step, self.stride)
        count = period if heads % period == 0 else heads
        blocks = -(-tokens // self.size)
        row, column = torch.arange(blocks)[:, None], torch.arange(blocks)[None, :]
        seen = [
            (column <= row) & ((row - column < self.local) | self.keeps(self.shift(head), column))
            for head in range(count)
        ]
        starts = np.zeros((count, blocks + 1), np.int32)
        starts[:, 1:] = np.cumsum([layout.sum(dim=1).numpy() for layout in seen], axis=1)
        lists = np.full((count, starts.max()), -1, np.int32)
        for layout, places in enumerate(seen):
            lists[layout, : starts[layout, -1]] = places.nonzero()[:, 1].numpy()
        return starts, lists
