"""Attention as one operator, `phi_edge::attention`: rotation, cache and grouped heads together.

An ONNX graph has GroupQueryAttention or SparseAttention of com.microsoft in its place. Run in eager mode it is the
float reference that the loss and the parity tests use: plain and exact; not fast.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from export.models.masks import BlockPattern, causal_mask

QUERIES = 512  # attended at a time in eager mode: a mask over 8192 tokens at once has 64 million places a head


@dataclass(frozen=True, kw_only=True)
class AttentionKind:
    """What decides one layer's attention."""

    heads: int
    kv_heads: int
    scale: float | None = None  # of the products; None for 1 / sqrt(head_dim)
    window: int | None = None  # in tokens, the query's own included; None for all that came before
    blocks: BlockPattern | None = None


class Cached(NamedTuple):
    """A call of attention but for its kind: what one layer's tokens and cache are, and where they are.

    qkv [batch, tokens, (heads + 2 kv_heads) * head_dim], all queries, then keys, then values; past_* [batch, kv_heads,
    capacity, head_dim]; last_position int32 [batch], the position of the last token; total_tokens int32 [1], its number
    counted from 1; cos, sin [capacity or more, rotary_dim / 2]; rows int64 [batch, tokens], each token's row of them
    where that is not its position (see table_rows).
    """

    qkv: Tensor
    past_key: Tensor
    past_value: Tensor
    last_position: Tensor
    total_tokens: Tensor
    cos: Tensor
    sin: Tensor
    rows: Tensor | None = None


class AttentionNode(NamedTuple):
    """The operator's arguments in a traced graph: Cached, then the kind's."""

    qkv: Any
    past_key: Any
    past_value: Any
    last_position: Any
    total_tokens: Any
    cos: Any
    sin: Any
    rows: Any
    heads: int
    kv_heads: int
    scale: float | None
    window: int  # -1 for none
    blocks: list[int]  # a BlockPattern's four numbers, or nothing


def attend(kind: AttentionKind, call: Cached) -> tuple[Tensor, Tensor, Tensor]:
    """-> attended [batch, tokens, heads * head_dim], and the two caches with the new rows in place."""
    blocks = list(dataclasses.astuple(kind.blocks)) if kind.blocks else []
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.phi_edge.attention(
        *call, kind.heads, kind.kv_heads, kind.scale, kind.window or -1, blocks
    )
    return result


@torch.library.custom_op("phi_edge::attention", mutates_args=())
def attention(
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
    scale: float | None,
    window: int,
    blocks: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate, append to the cache, attend: see AttentionNode."""
    head_dim = past_key.shape[-1]
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    query, key, value = (
        part.reshape(*part.shape[:-1], -1, head_dim).transpose(1, 2) for part in torch.split(qkv, sizes, dim=-1)
    )
    end = int(last_position[0]) + 1
    start = end - qkv.shape[1]
    place = slice(start, end) if rows is None else rows[0]
    query, key = (rotate(part, cos[place], sin[place]) for part in (query, key))
    present_key, present_value = past_key.clone(), past_value.clone()
    present_key[:, :, start:end], present_value[:, :, start:end] = key, value
    attended = []
    for first in range(start, end, QUERIES):
        last = min(first + QUERIES, end)
        visible = causal_mask(first, last - first, last, window)
        if blocks:
            visible = BlockPattern(*blocks).visible(heads, first, last - first, last)
        piece = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, first - start : last - start],
            present_key[:, :, :last],
            present_value[:, :, :last],
            attn_mask=visible,
            scale=scale,
            enable_gqa=True,
        )
        attended.append(piece.transpose(1, 2).flatten(2))
    return torch.cat(attended, dim=1), present_key, present_value


@attention.register_fake
def _(qkv: Tensor, past_key: Tensor, past_value: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    heads = others[AttentionNode._fields.index("heads") - 3]
    attended = qkv.new_empty(qkv.shape[0], qkv.shape[1], heads * past_key.shape[-1])
    return attended, torch.empty_like(past_key), torch.empty_like(past_value)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] channels of [..., tokens, head_dim], half against half (not interleaved)."""
    half = cos.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


@torch.library.custom_op("phi_edge::table_rows", mutates_args=())
def table_rows(input_ids: Tensor, last_position: Tensor, sequence_tokens: Tensor, original: int) -> Tensor:
    """Long rope's choice: which row of the stacked tables (RopeConfig.stacked_tables) each token is rotated by.

    sequence_tokens int32 [1]: how long the sequence will be when this prompt is in. Beyond `original` every token takes
    the long factors, the first ones too. -> int64 [batch, tokens].
    """
    end = int(last_position[0]) + 1 + (original if int(sequence_tokens[0]) > original else 0)
    return torch.arange(end - input_ids.shape[1], end)[None].expand(input_ids.shape[0], -1).contiguous()


@table_rows.register_fake
def _(input_ids: Tensor, last_position: Tensor, sequence_tokens: Tensor, original: int) -> Tensor:
    return torch.empty_like(input_ids)
