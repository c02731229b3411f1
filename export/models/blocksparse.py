"""Phi-3-small's attention: which blocks of keys each head sees, and the operator `phi_edge::block_sparse_attention`.

The operator's rows of query, key and value come by group, as the checkpoint has them. Run in eager mode it is the
float reference: dense attention under the exact mask, a few queries at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.models.attention import attention_shapes, causal_mask, rotate_and_append

QUERIES = 512  # attended at a time in eager mode: a mask over 8192 tokens at once has 64 million places a head


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


def ungroup(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[..., (heads + 2 kv_heads) * head_dim] by group -> query, key, value [..., heads or kv_heads, head_dim].

    A group's rows are its queries, then its key, then its value.
    """
    grouped = qkv.view(*qkv.shape[:-1], kv_heads, heads // kv_heads + 2, -1)
    return grouped[..., :-2, :].flatten(-3, -2), grouped[..., -2, :], grouped[..., -1, :]


@torch.library.custom_op("phi_edge::block_sparse_attention", mutates_args=())
def block_sparse_attention(
    qkv: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    last_position: Tensor,
    total_tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    pattern: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate, append to the cache, attend: see attention.py, whose arguments these are, but for qkv's order, the
    scale of the products, and `pattern`: a BlockPattern's four numbers, or none for a dense layer."""
    tokens = qkv.shape[1]
    query, key, value = (part.transpose(1, 2) for part in ungroup(qkv, heads, kv_heads))
    end = int(last_position[0]) + 1
    start = end - tokens
    query, present_key, present_value = rotate_and_append(
        query, key, value, past_key, past_value, slice(start, end), cos, sin, rows
    )
    attended = []
    for first in range(start, end, QUERIES):
        last = min(first + QUERIES, end)
        seen = causal_mask(first, last - first, last, -1)
        if pattern:
            seen = BlockPattern(*pattern).visible(heads, first, last - first, last)
        piece = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, first - start : last - start],
            present_key[:, :, :last],
            present_value[:, :, :last],
            attn_mask=seen,
            scale=scale,
            enable_gqa=True,
        )
        attended.append(piece.transpose(1, 2).flatten(2))
    return torch.cat(attended, dim=1), present_key, present_value


@block_sparse_attention.register_fake
def _(
    qkv: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    last_position: Tensor,
    total_tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    pattern: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return attention_shapes(qkv, past_key, past_value, heads)
