"""The Phi-3 decoder (model_type "phi3"): mini, medium, 3.5-mini and 4-mini. Both formats are made from this page.

Phi-3-small is another architecture: export.models.phi3small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from export.models.config import (
    IGNORED,
    ROPE_KEYS,
    SIZES,
    flag,
    head_size,
    refuse_other,
    refuse_unknown,
    sizes,
    window,
)
from export.models.layers import QKV, Embedding, Gated, Rotation, SiLU
from export.models.rope import positive, read_rope
from export.models.shape import Config, Layer, Model

# Keys whose only accepted value is the one that the model below computes.
FIXED: Mapping[str, Any] = {
    "attention_bias": False,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "model_type": "phi3",
}
KNOWN = {*SIZES, *ROPE_KEYS, *FIXED, "head_dim", "rms_norm_eps", "sliding_window", "tie_word_embeddings"}
# Layers whose rows some trainers keep apart, and Llama's checkpoints do: see Config.joined.
APART = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
DROPOUT = {"attention_dropout", "embd_pdrop", "resid_pdrop"}  # which training alone uses


@dataclass(frozen=True, kw_only=True)
class Phi3Config(Config):
    """See Config."""

    rms_norm_eps: float

    def module(self) -> Phi3:
        return Phi3(self)


@dataclass(frozen=True, kw_only=True)
class SplitPhi3Config(Phi3Config):
    """The same model, of whose checkpoint query, key and value are three tensors, and gate and up two."""

    @property
    def joined(self) -> Mapping[str, tuple[str, ...]]:
        return APART


def read_config(content: Mapping[str, Any]) -> Phi3Config:
    """config.json's content -> Phi3Config. Raises CheckpointError with the key, the value seen and those allowed."""
    refuse_unknown(content, KNOWN, IGNORED | DROPOUT)
    refuse_other(content, FIXED)
    content = {"num_key_value_heads": content.get("num_attention_heads")} | dict(content)
    numbers = sizes(content, SIZES)
    head_dim = head_size(content)
    return Phi3Config(
        **numbers,
        sliding_window=window(content),
        tie_word_embeddings=flag(content, "tie_word_embeddings", default=False),
        rms_norm_eps=positive("rms_norm_eps", content, default=1e-5),
        rope=read_rope(content, head_dim=head_dim),
    )


class Attention(nn.Module):
    """The projections around attention; attention itself is the caller's."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        size, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.qkv_proj = QKV(size, heads, kv_heads, config.head_dim)
        self.o_proj = nn.Linear(size, size, bias=False)


class MLP(nn.Module):
    """Feed-forward, gated by SiLU."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.gate_up_proj = Gated(config.hidden_size, config.intermediate_size, SiLU())
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.down_proj(self.gate_up_proj(x))
        return product


class DecoderLayer(Layer):
    """See Layer."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def before_attention(self, hidden: Tensor, rotation: Rotation) -> Any:
        return self.self_attn.qkv_proj(self.input_layernorm(hidden), rotation)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.self_attn.o_proj(attended)
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class Decoder(nn.Module):
    """Embedding, layers and the last norm: the checkpoint's `model.`"""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Phi3(Model):
    """See Model."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def decoder_layers(self) -> Iterable[Layer]:
        return self.model.layers  # type: ignore[return-value]

    def embed(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.model.embed_tokens(ids)
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.model.norm(hidden))
        return logits
