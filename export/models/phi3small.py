"""The Phi-3-small decoder (model_type "phi3small"): grouped heads, block-sparse attention, GeGELU, muP, LayerNorm.

The order of query_key_value's and up_proj's rows is the checkpoint's: by group of heads, and by turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from export.errors import CheckpointError
from export.models.attention import AttentionKind
from export.models.config import IGNORED, flag, head_size, numbers, refuse_other, refuse_unknown, sizes
from export.models.layers import QKV, Embedding, Gated, GeGELU, NeverChosen, Rotation
from export.models.masks import BlockPattern
from export.models.rope import read_rope
from export.models.shape import Config, Layer, Model

FIXED: Mapping[str, Any] = {
    "attention_bias": False,
    "hidden_act": "gegelu",
    "model_type": "phi3small",
    "reorder_and_upcast_attn": False,
    "rope_position_scale": 1.0,
    "tie_word_embeddings": True,  # the published code ties lm_head to the embedding
}
# Keys that say nothing about inference. gegelu_pad_to_256 and ff_dim_multiplier only make ff_intermediate_size.
OF_TRAINING = {
    *("attention_dropout_prob", "embedding_dropout_prob", "ffn_dropout_prob", "ff_dim_multiplier"),
    *("gegelu_pad_to_256", "blocksparse_triton_kernel_block_size", "pad_sequence_to_multiple_of_64"),
}
SHARED_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
OWN_SIZES = (
    *("dense_attention_every_n_layers", "blocksparse_block_size", "blocksparse_num_local_blocks"),
    "blocksparse_vert_stride",
)
SIZES = (*SHARED_SIZES, "max_position_embeddings", "ff_intermediate_size", *OWN_SIZES)
NUMBERS = (
    *("gegelu_limit", "layer_norm_epsilon", "mup_attn_multiplier", "mup_embedding_multiplier"),
    "mup_width_multiplier",
)
FLAGS = ("blocksparse_homo_head_pattern", "mup_use_scaling")
OTHERS = ("dummy_token_indices", "original_max_position_embeddings", "rope_embedding_base", "rope_scaling")


@dataclass(frozen=True, kw_only=True)
class Phi3SmallConfig(Config):
    """See Config. The names are config.json's, but for intermediate_size (ff_intermediate_size)."""

    dense_attention_every_n_layers: int
    blocksparse_block_size: int
    blocksparse_num_local_blocks: int
    blocksparse_vert_stride: int
    blocksparse_homo_head_pattern: bool
    gegelu_limit: float
    layer_norm_epsilon: float
    mup_use_scaling: bool
    mup_attn_multiplier: float
    mup_embedding_multiplier: float
    mup_width_multiplier: float
    dummy_token_indices: tuple[int, ...]

    @property
    def blocks(self) -> BlockPattern:
        """The sparse layers' pattern."""
        heads, stride = self.num_attention_heads, self.blocksparse_vert_stride
        step = 0 if self.blocksparse_homo_head_pattern else max(1, stride // heads)
        return BlockPattern(self.blocksparse_block_size, self.blocksparse_num_local_blocks, stride, step)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Beyond its local blocks a sparse layer leaves keys out."""
        return (self.blocks.dense_tokens,)

    def attention(self, layer: int) -> AttentionKind:
        """Every n-th layer is dense, the others see blocks. muP divides by head_dim, not by its root."""
        scale = self.mup_attn_multiplier / self.head_dim if self.mup_use_scaling else float(self.head_dim**-0.5)
        dense = (layer + 1) % self.dense_attention_every_n_layers == 0
        return AttentionKind(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            scale=scale,
            blocks=self.blocks.dense() if dense else self.blocks,
        )

    def module(self) -> Phi3Small:
        return Phi3Small(self)


def read_config(content: Mapping[str, Any]) -> Phi3SmallConfig:
    """config.json's content -> Phi3SmallConfig. Raises CheckpointError with the key and the value seen."""
    refuse_unknown(content, {*SIZES, *NUMBERS, *FLAGS, *FIXED, *OTHERS}, IGNORED | OF_TRAINING)
    refuse_other(content, FIXED)
    fields: dict[str, Any] = sizes(content, SIZES)
    fields |= {key: flag(content, key) for key in FLAGS} | numbers(content, NUMBERS)
    head_dim = head_size(content)
    dummies = content.get("dummy_token_indices") or []
    if not isinstance(dummies, list) or not all(type(id) is int and 0 <= id < content["vocab_size"] for id in dummies):
        raise CheckpointError(f"config.json: dummy_token_indices is {dummies!r}; it must be a list of token ids")
    rope = read_rope(dict(content) | {"rope_theta": content.get("rope_embedding_base")}, head_dim=head_dim, mscale=True)
    inner = fields.pop("ff_intermediate_size")
    return Phi3SmallConfig(
        **fields,
        intermediate_size=inner,
        tie_word_embeddings=True,
        dummy_token_indices=tuple(dummies),
        rope=rope,
    )


class Attention(nn.Module):
    """The projections around attention; attention itself is the caller's."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        size, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.query_key_value = QKV(size, heads, kv_heads, config.head_dim, grouped=True, bias=True)
        self.dense = nn.Linear(size, size)


class MLP(nn.Module):
    """Feed-forward, gated by GeGELU: the even rows of up_proj are the gate, the odd ones the linear part."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        size, inner, gate = config.hidden_size, config.intermediate_size, GeGELU(config.gegelu_limit)
        self.up_proj = Gated(size, inner, gate, other="linear", alternating=True, bias=True)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.down_proj(self.up_proj(x))
        return product


class DecoderLayer(Layer):
    """See Layer. Its tensors lie in an artifact in this order."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)

    def before_attention(self, hidden: Tensor, rotation: Rotation) -> Any:
        return self.self_attn.query_key_value(self.input_layernorm(hidden), rotation)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.self_attn.dense(attended)
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class Decoder(nn.Module):
    """The checkpoint's `model.`"""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)


class Phi3Small(Model):
    """See Model. Dummy tokens get the lowest logit there is."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.embedding_scale, self.logit_scale = config.mup_embedding_multiplier, 1 / config.mup_width_multiplier
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight
        self.dummies = NeverChosen(config.dummy_token_indices)

    def decoder_layers(self) -> Iterable[Layer]:
        return self.model.layers  # type: ignore[return-value]

    def embed(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.model.embed_tokens(ids) * self.embedding_scale
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.model.final_layernorm(hidden)) * self.logit_scale
        return logits

    def after_logits(self, logits: Tensor) -> Tensor:
        masked: Tensor = self.dummies(logits)
        return masked
