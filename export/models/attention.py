"""Attention as one operator, `phi_edge::group_query_attention`: rotation, cache and grouped heads together.

In the ONNX graph it becomes com.microsoft's GroupQueryAttention. Run in eager mode it is the float reference that the
loss pass and the parity tests use: plain, exact, and in no hurry.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("phi_edge::group_query_attention", mutates_args=())
def group_query_attention(
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
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate, append to the cache, attend.

    qkv [batch, tokens, (heads + 2 kv_heads) * head_dim]; past_* [batch, kv_heads, capacity, head_dim];
    last_position int32 [batch], the position of the last token; total_tokens int32 [1], its number counted from 1;
    cos, sin [capacity or more, rotary_dim / 2]; rows int64 [batch, tokens], each token's row of them where that is not
    its position (see table_rows); window in tokens, itself included, -1 for full attention.
    Returns attended [batch, tokens, heads * head_dim] and the two caches with the new rows in place.
    """
    batch, tokens, _ = qkv.shape
    head_dim = past_key.shape[-1]
    query, key, value = (
        part.reshape(batch, tokens, -1, head_dim).transpose(1, 2)
        for part in torch.split(qkv, [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=-1)
    )
    end = int(last_position[0]) + 1
    start = end - tokens
    query, present_key, present_value = rotate_and_append(
        query, key, value, past_key, past_value, slice(start, end), cos, sin, rows
    )
    attended = torch.nn.functional.scaled_dot_product_attention(
        query,
        present_key[:, :, :end],
        present_value[:, :, :end],
        attn_mask=causal_mask(start, tokens, end, window),
        enable_gqa=True,
    )
    return attended.transpose(1, 2).reshape(batch, tokens, heads * head_dim), present_key, present_value


@group_query_attention.register_fake
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
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return attention_shapes(qkv, past_key, past_value, heads)


def rotate_and_append(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    positions: slice,
    cos: Tensor,
    sin: Tensor,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """query, key, value [batch, heads or kv_heads, tokens, head_dim] at these positions -> the rotated query, and both
    caches with the new rows in place. Rotated by `rows` of the tables where they are given, else by position."""
    place = positions if rows is None else rows[0]
    query, key = (rotate(part, cos[place], sin[place]) for part in (query, key))
    present_key, present_value = past_key.clone(), past_value.clone()
    present_key[:, :, positions] = key
    present_value[:, :, positions] = value
    return query, present_key, present_value


def attention_shapes(qkv: Tensor, past_key: Tensor, past_value: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """What an attention operator returns, as shapes only."""
    attended = qkv.new_empty(qkv.shape[0], qkv.shape[1], heads * past_key.shape[-1])
    return attended, torch.empty_like(past_key), torch.empty_like(past_value)


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


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] channels of [..., tokens, head_dim], half against half (not interleaved)."""
    half = cos.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def causal_mask(start: int, tokens: int, end: int, window: int) -> Tensor:
    """True where a query at start..start+tokens may see a key at 0..end."""
    query, key = torch.arange(start, start + tokens)[:, None], torch.arange(end)[None, :]
    visible = key <= query
    return visible & (key > query - window) if window > 0 else visible
