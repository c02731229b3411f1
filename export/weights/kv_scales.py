"""An int8 KV cache: its scales, from the keys and values of the calibration text, and attention through it.

A channel of a head has one scale for all tokens. Rotation mixes a key's channels in pairs, by angles that grow with the
position, so both channels of a pair get the scale of the pair's longest vector: it fits every position, also those
beyond the text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export.models.attention import AttentionKind, Cached, attend, rotate
from export.weights.slots import SlotId
from export.weights.stream import Stream, as_bytes

LARGEST = 127
SMALLEST_SCALE = 1e-8  # of a channel that is 0 throughout the text


def scale_ids(layer: int) -> tuple[SlotId, SlotId]:
    """Of a layer's keys and of its values."""
    key, value = (SlotId(f"model.layers.{layer}.self_attn.{part}_cache", "scales") for part in ("k", "v"))
    return key, value


def attend_through_cache(stream: Stream, layer: int, call: Cached) -> Tensor:
    """Attention of one layer in the pass: the batch's cached sequences with an int8 cache, the others without. Writes
    the scales to their slots."""
    batch, kind = stream.batch, stream.checkpoint.config.attention(layer)
    _, keys, values = heads_of(kind, batch.calibration(call.qkv))
    scales = key_scales(keys, call.cos[0]), value_scales(values)
    for id, scale in zip(scale_ids(layer), scales, strict=True):
        stream.sink.append(id, as_bytes(scale))
    count = len(call.qkv) - batch.cached
    plain = call._replace(qkv=call.qkv[:count], past_key=call.past_key[:count], past_value=call.past_value[:count])
    cached = call._replace(qkv=call.qkv[count:], past_key=call.past_key[count:], past_value=call.past_value[count:])
    return torch.cat((attend(kind, plain)[0], attend(kind, through_cache(kind, cached, scales))[0]))


def heads_of(kind: AttentionKind, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed [sequences, tokens, ...] -> queries, keys and values [sequences, tokens, heads, head_dim]."""
    heads = qkv.reshape(*qkv.shape[:-1], kind.heads + 2 * kind.kv_heads, -1)
    query, key, value = torch.split(heads, [kind.heads, kind.kv_heads, kind.kv_heads], dim=2)
    return query, key, value


def key_scales(keys: Tensor, factors: Tensor) -> Tensor:
    """Keys before their rotation -> [kv_heads, head_dim]. `factors` [rotary_dim / 2]: what rotation makes a pair longer
    by, which is the cosine at position 0."""
    half = len(factors)
    pairs = torch.hypot(keys[..., :half], keys[..., half : 2 * half]).amax(dim=(0, 1)) * factors
    rest = keys[..., 2 * half :].abs().amax(dim=(0, 1))
    return torch.cat((pairs, pairs, rest), dim=-1).div(LARGEST).clamp(min=SMALLEST_SCALE)


def value_scales(values: Tensor) -> Tensor:
    """-> [kv_heads, head_dim]."""
    return values.abs().amax(dim=(0, 1)).div(LARGEST).clamp(min=SMALLEST_SCALE)


def through_cache(kind: AttentionKind, call: Cached, scales: tuple[Tensor, Tensor]) -> Cached:
    """The same call with queries, keys and values as attention reads them with an int8 cache: rotated already, keys and
    values rounded."""
    query, key, value = heads_of(kind, call.qkv)
    cos, sin = call.cos[:, None], call.sin[:, None]
    read = [rounded(part, scale) for part, scale in zip((rotate(key, cos, sin), value), scales, strict=True)]
    qkv = torch.cat((rotate(query, cos, sin), *read), dim=2).flatten(2)
    return call._replace(qkv=qkv, cos=call.cos[:, :0], sin=call.sin[:, :0])


def rounded(values: Tensor, scale: Tensor) -> Tensor:
    """What an int8 cache makes of keys or values."""
    return values.div(scale).round().clamp(-LARGEST - 1, LARGEST).mul(scale)
