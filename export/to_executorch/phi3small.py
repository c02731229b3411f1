"""Phi-3-small's layers in stand-ins, and its block-sparse attention by custom_sdpa, which takes one mask for all heads.

So a layer's heads are parted: key-value heads whose queries have the same patterns in the same order are one class with
a cache of its own, and each pattern within a class is one call. With the published 32 heads and stride 8 these are two
classes of four calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from export.models.phi3small import GELU_SLOPE, Phi3SmallConfig
from export.models.shape import Rows
from export.scheme import Scheme
from export.to_executorch.layers import LayerNorm, Marks, RotatedProjection, make_linear
from export.to_executorch.runner import CachedAttention


class Phi3SmallStandIns:
    """See StandIns."""

    def __init__(self, config: Phi3SmallConfig, scheme: Scheme) -> None:
        self.config, self.scheme = config, scheme

    def project(self, marks: Marks, name: str) -> nn.Module:
        return Project(marks, name, self.config, self.scheme)

    def finish(self, marks: Marks, name: str) -> nn.Module:
        return Finish(marks, name, self.config, self.scheme)

    def head(self, marks: Marks) -> nn.Module:
        return Head(marks, self.config, self.scheme)

    def parted(self) -> Mapping[str, Rows]:
        return {"self_attn.query_key_value": qkv_rows(self.config), "mlp.up_proj": [("gate", 1), ("linear", 1)]}

    def attention(self, layer: int, context_tokens: int) -> nn.Module:
        config = self.config
        if config.is_sparse(layer) and context_tokens > config.blocks.dense_tokens:
            return BlockSparseAttention(config, context_tokens)
        return CachedAttention(config, context_tokens, scale=config.attention_scale)

    def masks(self, context_tokens: int) -> nn.Module:
        return BlockMasks(self.config, context_tokens)

    def embedded(self) -> nn.Module:
        return Scaled(self.config.mup_embedding_multiplier)

    def answered(self) -> nn.Module:
        return NeverChosen(self.config) if self.config.dummy_token_indices else nn.Identity()


class BlockMasks(nn.Module):
    """(start, count) -> a mask for each pattern of heads, numbered from 1 (dense layers have none); none at all where
    nothing is left out within the context."""

    def __init__(self, config: Phi3SmallConfig, context_tokens: int) -> None:
        super().__init__()
        self.blocks, self.context_tokens = config.blocks, context_tokens
        self.shifts = sorted({config.blocks.shift(head) for head in range(config.num_attention_heads)})
        block = torch.arange(context_tokens) // config.blocks.size
        for shift in self.shifts:
            kept = torch.where(config.blocks.keeps(shift, block), 0.0, float("-inf"))
            self.register_buffer(f"kept_{shift}", kept[None], persistent=False)

    def forward(self, start: Any, count: Any) -> dict[int, Tensor]:
        blocks = self.blocks
        if self.context_tokens <= blocks.dense_tokens:
            return {}
        query, key = torch.arange(count)[:, None] + start, torch.arange(self.context_tokens)[None, :]
        past = torch.where(key <= query, 0.0, float("-inf"))
        first = (torch.div(query, blocks.size, rounding_mode="floor") - (blocks.local - 1)) * blocks.size
        near = torch.where(key >= first, past, float("-inf"))
        return {shift + 1: torch.maximum(near, past + self.get_buffer(f"kept_{shift}")) for shift in self.shifts}


class Scaled(nn.Module):
    """Times one number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class NeverChosen(nn.Module):
    """The lowest logit there is for dummy tokens."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        dummies = torch.zeros(1, config.vocab_size, dtype=torch.bool)
        dummies[:, list(config.dummy_token_indices)] = True
        self.register_buffer("dummies", dummies, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        return torch.where(self.get_buffer("dummies"), torch.finfo(torch.float32).min, logits)


class BlockSparseAttention(nn.Module):
    """(query, key, value, start, masks) -> attended; the cache of each class of key-value heads is its state."""

    def __init__(self, config: Phi3SmallConfig, context_tokens: int) -> None:
        super().__init__()
        self.scale = config.attention_scale
        queries = config.num_attention_heads // config.num_key_value_heads
        classes: dict[tuple[int, ...], list[int]] = {}
        for group in range(config.num_key_value_heads):
            heads = range(group * queries, (group + 1) * queries)
            classes.setdefault(tuple(config.blocks.shift(head) for head in heads), []).append(group)
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
                cache = torch.zeros(1, context_tokens, len(groups), config.head_dim)
                self.register_buffer(f"{part}_{number}", cache, persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, start: Any, masks: Mapping[int, Tensor]) -> Tensor:
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


class GatedMLP(nn.Module):
    """GeGELU with gate and linear part as two matrices: the even and the odd rows of up_proj."""

    def __init__(self, marks: Marks, name: str, config: Phi3SmallConfig, scheme: Scheme) -> None:
        super().__init__()
        self.limit, hidden, inner = config.gegelu_limit, config.hidden_size, config.ff_intermediate_size
        for part in ("gate", "linear"):
            weight, bias = (f"{name}.up_proj.{kind}#{part}" for kind in ("weight", "bias"))
            self.add_module(part, make_linear(marks, weight, inner, hidden, scheme, bias))
        self.down = make_linear(marks, f"{name}.down_proj.weight", hidden, inner, scheme, f"{name}.down_proj.bias")

    def forward(self, x: Tensor) -> Tensor:
        x = self.down.quantise(x)
        gate = self.gate.multiply(x).clamp(max=self.limit)  # type: ignore[operator]
        linear = self.linear.multiply(x).clamp(-self.limit, self.limit)  # type: ignore[operator]
        return self.down(gate * torch.sigmoid(GELU_SLOPE * gate) * (linear + 1.0))  # type: ignore[no-any-return]


class Finish(nn.Module):
    """The second half of a layer: see DecoderLayer.finish."""

    def __init__(self, marks: Marks, name: str, config: Phi3SmallConfig, scheme: Scheme) -> None:
        super().__init__()
        size, dense = config.hidden_size, f"{name}.self_attn.dense"
        self.dense = make_linear(marks, f"{dense}.weight", size, size, scheme, f"{dense}.bias")
        self.norm = LayerNorm(marks, f"{name}.post_attention_layernorm", size, config.layer_norm_epsilon)
        self.mlp = GatedMLP(marks, f"{name}.mlp", config, scheme)

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.dense(attended)
        result: Tensor = hidden + self.mlp(self.norm(hidden))
        return result


class Project(nn.Module):
    """The first half of a layer, with the rotation: see DecoderLayer.project."""

    def __init__(self, marks: Marks, name: str, config: Phi3SmallConfig, scheme: Scheme) -> None:
        super().__init__()
        self.norm = LayerNorm(marks, f"{name}.input_layernorm", config.hidden_size, config.layer_norm_epsilon)
        self.qkv = RotatedProjection(
            marks, f"{name}.self_attn.query_key_value", qkv_rows(config), config, scheme, bias=True
        )

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = self.qkv(self.norm(hidden), cos, sin)
        return result


class Head(nn.Module):
    """The last norm and the logits, scaled down."""

    def __init__(self, marks: Marks, config: Phi3SmallConfig, scheme: Scheme) -> None:
        super().__init__()
        self.scale = 1 / config.mup_width_multiplier
        self.norm = LayerNorm(marks, "model.final_layernorm", config.hidden_size, config.layer_norm_epsilon)
        self.lm_head = make_linear(marks, "lm_head.weight", config.vocab_size, config.hidden_size, scheme)

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(hidden))
        return logits * self.scale


def qkv_rows(config: Phi3SmallConfig) -> list[tuple[str, int]]:
    """One group's rows of query_key_value, as (part, how many)."""
    half, queries = config.head_dim // 2, config.num_attention_heads // config.num_key_value_heads
    query, key = [("query0", half), ("query1", half)], [("key0", half), ("key1", half)]
    return [*query * queries, *key, ("value", config.head_dim)]
