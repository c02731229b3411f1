"""Phi-3's layers in stand-ins, and its attention: one mask at most, for the sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.models.phi3 import Phi3Config
from export.models.shape import Rows
from export.scheme import Scheme
from export.to_executorch.layers import Marks, Norm, RotatedProjection, make_linear
from export.to_executorch.runner import CachedAttention


class Phi3StandIns:
    """See StandIns."""

    def __init__(self, config: Phi3Config, scheme: Scheme) -> None:
        self.config, self.scheme = config, scheme

    def project(self, marks: Marks, name: str) -> nn.Module:
        return Project(marks, name, self.config, self.scheme)

    def finish(self, marks: Marks, name: str) -> nn.Module:
        return Finish(marks, name, self.config, self.scheme)

    def head(self, marks: Marks) -> nn.Module:
        config = self.config
        norm = Norm(marks, "model.norm.weight", config.hidden_size, config.rms_norm_eps)
        return nn.Sequential(
            norm, make_linear(marks, "lm_head.weight", config.vocab_size, config.hidden_size, self.scheme)
        )

    def parted(self) -> Mapping[str, Rows]:
        return {"self_attn.qkv_proj": qkv_rows(self.config), "mlp.gate_up_proj": gate_up_rows(self.config)}

    def attention(self, layer: int, context_tokens: int) -> nn.Module:
        return CachedAttention(self.config, context_tokens, scale=None)

    def masks(self, context_tokens: int) -> nn.Module:
        return WindowMask(self.config.sliding_window, context_tokens)

    def embedded(self) -> nn.Module:
        return nn.Identity()

    def answered(self) -> nn.Module:
        return nn.Identity()


class WindowMask(nn.Module):
    """(start, count) -> the window's mask as mask 0, where the context outgrows it."""

    def __init__(self, window: int | None, context_tokens: int) -> None:
        super().__init__()
        self.window, self.context_tokens = window, context_tokens

    def forward(self, start: Any, count: Any) -> dict[int, Tensor]:
        if not self.window or self.window >= self.context_tokens:
            return {}
        query = torch.arange(count)[:, None] + start
        key = torch.arange(self.context_tokens)[None, :]
        return {0: torch.where((key <= query) & (key > query - self.window), 0.0, float("-inf"))}


class SplitMLP(nn.Module):
    """The gated feed-forward with gate and up as two matrices: XNNPACK cannot cut a tensor of unknown length in two.
    Their bytes are the two halves of gate_up_proj."""

    def __init__(self, marks: Marks, name: str, config: Phi3Config, scheme: Scheme) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate = make_linear(marks, f"{name}.gate_up_proj.weight#gate", inner, hidden, scheme)
        self.up = make_linear(marks, f"{name}.gate_up_proj.weight#up", inner, hidden, scheme)
        self.down = make_linear(marks, f"{name}.down_proj.weight", hidden, inner, scheme)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate.quantise(x)
        return self.down(functional.silu(self.gate.multiply(x)) * self.up.multiply(x))  # type: ignore[no-any-return]


class Finish(nn.Module):
    """The second half of a layer, in stand-ins: see DecoderLayer.finish."""

    def __init__(self, marks: Marks, name: str, config: Phi3Config, scheme: Scheme) -> None:
        super().__init__()
        size = config.hidden_size
        self.o_proj = make_linear(marks, f"{name}.self_attn.o_proj.weight", size, size, scheme)
        self.norm = Norm(marks, f"{name}.post_attention_layernorm.weight", size, config.rms_norm_eps)
        self.mlp = SplitMLP(marks, f"{name}.mlp", config, scheme)

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.o_proj(attended)
        result: Tensor = hidden + self.mlp(self.norm(hidden))
        return result


class Project(nn.Module):
    """The first half of a layer, in stand-ins, with the rotation: see DecoderLayer.project."""

    def __init__(self, marks: Marks, name: str, config: Phi3Config, scheme: Scheme) -> None:
        super().__init__()
        self.norm = Norm(marks, f"{name}.input_layernorm.weight", config.hidden_size, config.rms_norm_eps)
        self.qkv = RotatedProjection(marks, f"{name}.self_attn.qkv_proj", qkv_rows(config), config, scheme)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = self.qkv(self.norm(hidden), cos, sin)
        return result


def qkv_rows(config: Phi3Config) -> list[tuple[str, int]]:
    """qkv_proj's rows from the first to the last, as (part, how many)."""
    half, rest = config.rope.rotary_dim // 2, config.head_dim - config.rope.rotary_dim
    rows: list[tuple[str, int]] = []
    for part, heads in (("query", config.num_attention_heads), ("key", config.num_key_value_heads)):
        head = [(f"{part}0", half), (f"{part}1", half)] + ([(f"{part}2", rest)] if rest else [])
        rows += head * heads
    return [*rows, ("value", config.num_key_value_heads * config.head_dim)]


def gate_up_rows(config: Phi3Config) -> list[tuple[str, int]]:
    """gate_up_proj's rows, as (part, how many)."""
    return [("gate", config.intermediate_size), ("up", config.intermediate_size)]
