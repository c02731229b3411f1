"""The Phi-3 decoder (model_type "phi3"): mini, medium, 3.5-mini and 4-mini. One page; both formats are traced from it.

It holds no KV cache and makes no mask: the caller's `attend` does both, so that the cache may be an input and an
output (ONNX), a buffer (ExecuTorch), or nothing at all (the loss pass). Parameter names are the checkpoint's.
Phi-3-small is another architecture: export.models.phi3small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import export.models.attention  # noqa: F401  (registers phi_edge::group_query_attention)
from export.errors import CheckpointError
from export.models.rope import RopeConfig, positive, read_rope
from export.models.shape import EMBEDDING, Attend, Rows, Step

# Keys whose only accepted value is the one that the module below computes.
FIXED: Mapping[str, Any] = {
    "attention_bias": False,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "model_type": "phi3",
}
# Keys that say nothing about inference.
IGNORED = frozenset(
    [
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "resid_pdrop",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Phi3Config:
    """config.json, read strictly: a key that changes the computation and is not honoured stops the export."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    max_position_embeddings: int
    sliding_window: int | None
    tie_word_embeddings: bool
    rope: RopeConfig

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def qkv_size(self) -> int:
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Lengths at which attention changes: the window fills."""
        return () if self.sliding_window is None else (self.sliding_window,)

    @property
    def parameters(self) -> int:
        h, i = self.hidden_size, self.intermediate_size
        layer = self.qkv_size * h + h * h + 3 * h * i + 2 * h
        return self.num_hidden_layers * layer + h + self.vocab_size * h * (1 if self.tie_word_embeddings else 2)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        return tensor_shapes(self)

    def interleaved(self) -> Mapping[str, Rows]:
        return {}

    def module(self) -> Phi3:
        return Phi3(self)


SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
]
ROPE_KEYS = frozenset(
    ["original_max_position_embeddings", "partial_rotary_factor", "rope_parameters", "rope_scaling", "rope_theta"]
)


def read_config(content: Mapping[str, Any]) -> Phi3Config:
    """config.json's content -> Phi3Config. Raises CheckpointError with the key, the value seen and those allowed."""
    known = {*SIZES, *ROPE_KEYS, *FIXED, *IGNORED, "head_dim", "rms_norm_eps", "sliding_window", "tie_word_embeddings"}
    for key in content:
        if key not in known:
            raise CheckpointError(
                f"config.json: {key!r} is not known, so it might change the computation; known keys: "
                + ", ".join(sorted(known - IGNORED))
            )
    for key, allowed in FIXED.items():
        if content.get(key, allowed) != allowed:
            raise CheckpointError(f"config.json: {key} is {content[key]!r}; only {allowed!r} is supported")
    content = dict[str, Any]({"num_key_value_heads": content.get("num_attention_heads")}) | dict(content)
    for key in SIZES:
        value = content.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"config.json: {key} is {value!r}; it must be a positive whole number")
    hidden, heads, kv_heads = (content[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if hidden % heads or heads % kv_heads:
        raise CheckpointError(
            f"config.json: hidden_size {hidden}, num_attention_heads {heads} and num_key_value_heads {kv_heads} "
            "must divide one another in this order"
        )
    if content.get("head_dim") not in (None, hidden // heads):
        raise CheckpointError(f"config.json: head_dim is {content['head_dim']}; only hidden_size / heads is supported")
    window, longest = content.get("sliding_window"), content["max_position_embeddings"]
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise CheckpointError(f"config.json: sliding_window is {window!r}; it must be null or a positive whole number")
    tied = content.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise CheckpointError(f"config.json: tie_word_embeddings is {tied!r}; it must be true or false")
    return Phi3Config(
        **{key: content[key] for key in SIZES},
        rms_norm_eps=positive("rms_norm_eps", content, default=1e-5),
        # As in transformers: a window as long as the longest sequence is no window (Phi-4-mini says 262144).
        sliding_window=window if window is not None and window < longest else None,
        tie_word_embeddings=tied,
        rope=read_rope(content, head_dim=hidden // heads),
    )


def tensor_shapes(config: Phi3Config) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, in the order of the forward pass."""
    h, i = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, h)}
    for n in range(config.num_hidden_layers):
        layer = f"model.layers.{n}."
        shapes[layer + "input_layernorm.weight"] = (h,)
        shapes[layer + "self_attn.qkv_proj.weight"] = (config.qkv_size, h)
        shapes[layer + "self_attn.o_proj.weight"] = (h, h)
        shapes[layer + "post_attention_layernorm.weight"] = (h,)
        shapes[layer + "mlp.gate_up_proj.weight"] = (2 * i, h)
        shapes[layer + "mlp.down_proj.weight"] = (h, i)
    shapes["model.norm.weight"] = (h,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, h)
    return shapes


class Attention(nn.Module):
    """The projections around attention; attention itself is the caller's."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(config.hidden_size, config.qkv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)


class MLP(nn.Module):
    """SiLU-gated feed-forward; the gate's rows come first in gate_up_proj."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        product: Tensor = self.down_proj(functional.silu(gate) * up)
        return product


class DecoderLayer(nn.Module):
    """One layer, in the two halves that attention parts: `project` before it, `finish` after it."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def project(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> packed qkv."""
        qkv: Tensor = self.self_attn.qkv_proj(self.input_layernorm(hidden))
        return qkv

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The residual stream and what attention gave -> the residual stream after this layer."""
        hidden = hidden + self.self_attn.o_proj(attended)
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class Decoder(nn.Module):
    """Embedding, layers and the last norm: the checkpoint's `model.`"""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Phi3(nn.Module):
    """input_ids [batch, tokens] -> logits [batch, tokens, vocab], or [batch, 1, vocab] with `last_token_only`."""

    def __init__(self, config: Phi3Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor, attend: Attend, *, last_token_only: bool = False) -> Tensor:
        values = input_ids
        for stage in self.stages(attend, last_token_only=last_token_only):
            values = stage(values)
        return values

    def attention(
        self,
        layer: int,
        qkv: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        last_position: Tensor,
        total_tokens: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See Model."""
        config = self.config
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.phi_edge.group_query_attention(
            qkv, past_key, past_value, last_position, total_tokens, cos, sin, rows,
            config.num_attention_heads, config.num_key_value_heads, config.sliding_window or -1,
        )  # fmt: skip
        return result

    def stages(self, attend: Attend, *, last_token_only: bool = False) -> list[Step]:
        """See Model."""

        def through(index: int, layer: DecoderLayer) -> Step:
            return lambda hidden: layer.finish(hidden, attend(index, layer.project(hidden)))

        def head(hidden: Tensor) -> Tensor:
            logits: Tensor = self.lm_head(self.model.norm(hidden[:, -1:] if last_token_only else hidden))
            return logits

        layers = [through(i, layer) for i, layer in enumerate(self.model.layers) if isinstance(layer, DecoderLayer)]
        return [self.model.embed_tokens, *layers, head]
