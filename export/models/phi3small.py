"""The Phi-3-small decoder (model_type "phi3small"): grouped heads, block-sparse attention, GeGELU, muP, LayerNorm.

As export.models.phi3, it holds no KV cache: the caller's `attend` does attention. Parameter names and the order of
query_key_value's and up_proj's rows are the checkpoint's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import CheckpointError
from export.models.blocksparse import BlockPattern
from export.models.rope import RopeConfig, positive, read_rope
from export.models.shape import EMBEDDING, Attend, Rows, Step

GELU_SLOPE = 1.702  # of the sigmoid that stands for GELU
FIXED: Mapping[str, Any] = {
    "attention_bias": False,
    "hidden_act": "gegelu",
    "model_type": "phi3small",
    "reorder_and_upcast_attn": False,
    "rope_position_scale": 1.0,
    "tie_word_embeddings": True,  # the published code ties lm_head to the embedding
}
# Keys that say nothing about inference. gegelu_pad_to_256 and ff_dim_multiplier only make ff_intermediate_size.
IGNORED = frozenset(
    (
        *("_name_or_path", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "use_cache"),
        *("attention_dropout_prob", "embedding_dropout_prob", "ffn_dropout_prob", "initializer_range"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "ff_dim_multiplier", "gegelu_pad_to_256"),
        *("blocksparse_triton_kernel_block_size", "pad_sequence_to_multiple_of_64"),
    )
)
SIZES = (
    *("vocab_size", "hidden_size", "ff_intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "dense_attention_every_n_layers"),
    *("blocksparse_block_size", "blocksparse_num_local_blocks", "blocksparse_vert_stride"),
)
NUMBERS = (
    *("gegelu_limit", "layer_norm_epsilon", "mup_attn_multiplier", "mup_embedding_multiplier"),
    *("mup_width_multiplier",),
)
FLAGS = ("blocksparse_homo_head_pattern", "mup_use_scaling")
OTHERS = ("dummy_token_indices", "original_max_position_embeddings", "rope_embedding_base", "rope_scaling")


@dataclass(frozen=True, kw_only=True)
class Phi3SmallConfig:
    """config.json, read strictly."""

    vocab_size: int
    hidden_size: int
    ff_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
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
    rope: RopeConfig

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def qkv_size(self) -> int:
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def attention_scale(self) -> float:
        """muP divides by head_dim, not by its root."""
        return self.mup_attn_multiplier / self.head_dim if self.mup_use_scaling else float(self.head_dim**-0.5)

    @property
    def intermediate_size(self) -> int:
        return self.ff_intermediate_size

    @property
    def sliding_window(self) -> None:
        return None

    @property
    def tie_word_embeddings(self) -> bool:
        return True

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

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def is_sparse(self, layer: int) -> bool:
        """Every n-th layer is dense, the others see blocks."""
        return (layer + 1) % self.dense_attention_every_n_layers != 0

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        return tensor_shapes(self)

    def interleaved(self) -> Mapping[str, Rows]:
        head, queries = self.head_dim, self.num_attention_heads // self.num_key_value_heads
        return {
            "self_attn.query_key_value": [("query", queries * head), ("key", head), ("value", head)],
            "mlp.up_proj": [("gate", 1), ("linear", 1)],
        }

    def module(self) -> Phi3Small:
        return Phi3Small(self)


def read_config(content: Mapping[str, Any]) -> Phi3SmallConfig:
    """config.json's content -> Phi3SmallConfig. Raises CheckpointError with the key and the value seen."""
    known = {*SIZES, *NUMBERS, *FLAGS, *FIXED, *IGNORED, *OTHERS}
    for key in content:
        if key not in known:
            raise CheckpointError(
                f"config.json: {key!r} is not known, so it might change the computation; known keys: "
                + ", ".join(sorted(known - IGNORED))
            )
    for key, allowed in FIXED.items():
        if content.get(key, allowed) != allowed:
            raise CheckpointError(f"config.json: {key} is {content[key]!r}; only {allowed!r} is supported")
    for key in SIZES:
        value = content.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"config.json: {key} is {value!r}; it must be a positive whole number")
    for key in FLAGS:
        if not isinstance(content.get(key), bool):
            raise CheckpointError(f"config.json: {key} is {content.get(key)!r}; it must be true or false")
    hidden, heads, kv_heads = (content[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if hidden % heads or heads % kv_heads:
        raise CheckpointError(
            f"config.json: hidden_size {hidden}, num_attention_heads {heads} and num_key_value_heads {kv_heads} "
            "must divide one another in this order"
        )
    fields: dict[str, Any] = {key: content[key] for key in (*SIZES, *FLAGS)}
    fields |= {key: positive(key, content) for key in NUMBERS}
    dummies = content.get("dummy_token_indices") or []
    if not isinstance(dummies, list) or not all(type(id) is int and 0 <= id < content["vocab_size"] for id in dummies):
        raise CheckpointError(f"config.json: dummy_token_indices is {dummies!r}; it must be a list of token ids")
    rope = read_rope(
        dict(content) | {"rope_theta": content.get("rope_embedding_base")}, head_dim=hidden // heads, mscale=True
    )
    return Phi3SmallConfig(**fields, dummy_token_indices=tuple(dummies), rope=rope)


def tensor_shapes(config: Phi3SmallConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, in the order of the forward pass."""
    h, i, qkv = config.hidden_size, config.ff_intermediate_size, config.qkv_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, h)}
    for n in range(config.num_hidden_layers):
        layer = f"model.layers.{n}."
        for name, out, columns in (
            ("self_attn.query_key_value", qkv, h),
            ("self_attn.dense", h, h),
            ("mlp.up_proj", 2 * i, h),
            ("mlp.down_proj", h, i),
        ):
            shapes |= {f"{layer}{name}.weight": (out, columns), f"{layer}{name}.bias": (out,)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{layer}{name}.weight": (h,), f"{layer}{name}.bias": (h,)}
    return shapes | {"model.final_layernorm.weight": (h,), "model.final_layernorm.bias": (h,)}


@torch.library.custom_op("phi_edge::gegelu", mutates_args=())
def gegelu(pairs: Tensor, limit: float) -> Tensor:
    """[..., 2 * inner] -> [..., inner]: the even channels are the gate, the odd ones the linear part, both held within
    `limit`; gate * sigmoid(1.702 gate) * (linear + 1)."""
    gate, linear = pairs[..., 0::2].clamp(max=limit), pairs[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(GELU_SLOPE * gate) * (linear + 1)


@gegelu.register_fake
def _(pairs: Tensor, limit: float) -> Tensor:
    return pairs.new_empty(*pairs.shape[:-1], pairs.shape[-1] // 2)


@torch.library.custom_op("phi_edge::never_chosen", mutates_args=())
def never_chosen(logits: Tensor, indices: list[int]) -> Tensor:
    """Logits whose `indices` have the lowest value there is."""
    result = logits.clone()
    result[..., indices] = torch.finfo(logits.dtype).min
    return result


@never_chosen.register_fake
def _(logits: Tensor, indices: list[int]) -> Tensor:
    return torch.empty_like(logits)


class Attention(nn.Module):
    """The projections around attention; attention itself is the caller's. The rows of query_key_value go by group: its
    queries, then its key, then its value."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(config.hidden_size, config.qkv_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)


class MLP(nn.Module):
    """GeGELU: of up_proj's rows the even ones are the gate, the odd ones the linear part."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.limit = config.gegelu_limit
        self.up_proj = nn.Linear(config.hidden_size, 2 * config.ff_intermediate_size)
        self.down_proj = nn.Linear(config.ff_intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        product: Tensor = self.down_proj(torch.ops.phi_edge.gegelu(self.up_proj(hidden), self.limit))
        return product


class DecoderLayer(nn.Module):
    """One layer, in the two halves that attention parts."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def project(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> qkv by group."""
        qkv: Tensor = self.self_attn.query_key_value(self.input_layernorm(hidden))
        return qkv

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The residual stream and what attention gave -> the residual stream after this layer."""
        hidden = hidden + self.self_attn.dense(attended)
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class Decoder(nn.Module):
    """The checkpoint's `model.`"""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)


class Phi3Small(nn.Module):
    """input_ids [batch, tokens] -> logits [batch, tokens, vocab]. Dummy tokens get the lowest logit there is."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
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
        config, blocks = self.config, self.config.blocks
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.phi_edge.block_sparse_attention(
            qkv, past_key, past_value, last_position, total_tokens, cos, sin, rows,
            config.num_attention_heads, config.num_key_value_heads, config.attention_scale,
            list(dataclasses.astuple(blocks)) if config.is_sparse(layer) else [],
        )  # fmt: skip
        return result

    def stages(self, attend: Attend, *, last_token_only: bool = False) -> list[Step]:
        """See Model."""
        config = self.config

        def embed(ids: Tensor) -> Tensor:
            hidden: Tensor = self.model.embed_tokens(ids) * config.mup_embedding_multiplier
            return hidden

        def through(index: int, layer: DecoderLayer) -> Step:
            return lambda hidden: layer.finish(hidden, attend(index, layer.project(hidden)))

        def head(hidden: Tensor) -> Tensor:
            hidden = self.model.final_layernorm(hidden[:, -1:] if last_token_only else hidden)
            logits: Tensor = self.lm_head(hidden) * (1 / config.mup_width_multiplier)
            if config.dummy_token_indices:
                logits = torch.ops.phi_edge.never_chosen(logits, list(config.dummy_token_indices))
            return logits

        layers = [through(i, layer) for i, layer in enumerate(self.model.layers) if isinstance(layer, DecoderLayer)]
        return [embed, *layers, head]
