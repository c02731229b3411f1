"""The Phi-3-small decoder (model_type "phi3small"): grouped heads, block-sparse attention, GeGELU, muP, LayerNorm.

As export.models.phi3, it holds no KV cache: the caller's `attend` does attention. Parameter names and the order of
query_key_value's rows are the checkpoint's. This is the float module; neither format lowers it yet, so an export of
Phi-3-small is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import CheckpointError
from export.rope import RopeConfig, positive

# attend(layer, query, key, value): [batch, tokens, heads or kv_heads, head_dim] -> [batch, tokens, heads * head_dim].
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

GELU_SLOPE = 1.702  # of the sigmoid that stands for GELU
FIXED: Mapping[str, Any] = {
    "attention_bias": False,
    "hidden_act": "gegelu",
    "model_type": "phi3small",
    "reorder_and_upcast_attn": False,
    "rope_scaling": None,  # the 128k variant's factors are not read yet
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
    *("mup_width_multiplier", "rope_embedding_base", "rope_position_scale"),
)
FLAGS = ("blocksparse_homo_head_pattern", "mup_use_scaling")


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
    rope_embedding_base: float
    rope_position_scale: float
    dummy_token_indices: tuple[int, ...]

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
    def rope(self) -> RopeConfig:
        return RopeConfig(
            type="default",
            theta=self.rope_embedding_base,
            rotary_dim=self.head_dim,
            original_context_tokens=self.max_position_embeddings,
            attention_factor=1.0,
            short_factor=(),
            long_factor=(),
        )

    def is_sparse(self, layer: int) -> bool:
        """Every n-th layer is dense, the others see blocks."""
        return (layer + 1) % self.dense_attention_every_n_layers != 0

    def visible(self, start: int, tokens: int, end: int) -> Tensor:
        """The sparse layers' mask: True where a query at start..start+tokens of each head may see a key at 0..end.

        A query sees the last `num_local_blocks` blocks, its own included, and of the older ones each `vert_stride`-th,
        counted from another block in every head. -> bool [heads, tokens, end].
        """
        query, key = torch.arange(start, start + tokens)[:, None], torch.arange(end)[None, :]
        query_block, key_block = query // self.blocksparse_block_size, key // self.blocksparse_block_size
        local = query_block - key_block < self.blocksparse_num_local_blocks
        stride = self.blocksparse_vert_stride
        step = 0 if self.blocksparse_homo_head_pattern else max(1, stride // self.num_attention_heads)
        shift = torch.arange(self.num_attention_heads)[:, None, None] * step
        return (key <= query) & (local | ((key_block + shift + 1) % stride == 0))


def read_config(content: Mapping[str, Any]) -> Phi3SmallConfig:
    """config.json's content -> Phi3SmallConfig. Raises CheckpointError with the key and the value seen."""
    known = {*SIZES, *NUMBERS, *FLAGS, *FIXED, *IGNORED, "dummy_token_indices"}
    for key in content:
        if key not in known:
            raise CheckpointError(f"config.json: {key!r} is not known, so it might change the computation")
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
    if content["rope_position_scale"] != 1.0:
        raise CheckpointError(
            f"config.json: rope_position_scale is {content['rope_position_scale']!r}; only 1.0 is known"
        )
    fields: dict[str, Any] = {key: content[key] for key in (*SIZES, *FLAGS)}
    fields |= {key: positive(key, content) for key in NUMBERS}
    return Phi3SmallConfig(**fields, dummy_token_indices=tuple(content.get("dummy_token_indices", ())))


def tensor_shapes(config: Phi3SmallConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, in the order of the forward pass."""
    h, i, qkv = config.hidden_size, config.ff_intermediate_size, config.qkv_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, h)}
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


class Attention(nn.Module):
    """The projections around attention."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.config = config
        self.query_key_value = nn.Linear(config.hidden_size, config.qkv_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> query, key, value by head. The rows go by group: its queries, then its key, then its value."""
        config = self.config
        queries = config.num_attention_heads // config.num_key_value_heads
        grouped = self.query_key_value(hidden).unflatten(-1, (config.num_key_value_heads, queries + 2, config.head_dim))
        return grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]


class MLP(nn.Module):
    """GeGELU: of up_proj's rows the even ones are the gate, the odd ones the linear part, both held within bounds."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.limit = config.gegelu_limit
        self.up_proj = nn.Linear(config.hidden_size, 2 * config.ff_intermediate_size)
        self.down_proj = nn.Linear(config.ff_intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        pairs = self.up_proj(hidden).unflatten(-1, (-1, 2))
        gate, linear = pairs[..., 0].clamp(max=self.limit), pairs[..., 1].clamp(-self.limit, self.limit)
        product: Tensor = self.down_proj(gate * torch.sigmoid(GELU_SLOPE * gate) * (linear + 1))
        return product


class DecoderLayer(nn.Module):
    """One layer."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, hidden: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        hidden = hidden + self.self_attn.dense(attend(*self.self_attn.project(self.input_layernorm(hidden))))
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

    def forward(self, input_ids: Tensor, attend: Attend) -> Tensor:
        config = self.config
        hidden = self.model.embed_tokens(input_ids) * config.mup_embedding_multiplier
        for index, layer in enumerate(self.model.layers):
            hidden = layer(hidden, lambda *qkv, index=index: attend(index, *qkv))
        logits = nn.functional.linear(self.model.final_layernorm(hidden), self.model.embed_tokens.weight)
        logits = logits / config.mup_width_multiplier
        logits[..., list(config.dummy_token_indices)] = torch.finfo(logits.dtype).min
        return logits


def attend_at_once(config: Phi3SmallConfig, tokens: int) -> Attend:
    """Attention over a whole sequence, plain and exact: the sparse layers are dense ones under a mask."""
    from export.attention import causal_mask, rotate

    cos, sin = (torch.from_numpy(table) for table in config.rope.tables(tokens))
    masks = {True: config.visible(0, tokens, tokens), False: causal_mask(0, tokens, tokens, -1)}

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(
            rotate(query, cos, sin),
            rotate(key, cos, sin),
            value,
            attn_mask=masks[config.is_sparse(layer)],
            scale=config.attention_scale,
            enable_gqa=True,
        )
        return attended.transpose(1, 2).flatten(2)

    return attend
