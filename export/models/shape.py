"""What every model of the family is, whichever file it is in: a config read strictly, and a torch module of layers.

A page such as phi3.py describes its model once. Each user of it (the ONNX trace, the stream of weights, the float
reference, the ExecuTorch program) puts layers of its own in the place of the page's: see export.models.layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.models.attention import AttentionKind
from export.models.layers import Rotation, split_rows
from export.models.rope import RopeConfig

# attend(layer, projected): `projected` is what the layer's QKV gave; the result is [batch, tokens, heads * head_dim].
Attend = Callable[[int, Any], Tensor]
Step = Callable[[Tensor], Tensor]

# The checkpoint's tensors that hold a tensor's rows, in order, with their shapes.
Sources = Sequence[tuple[str, tuple[int, ...]]]

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class Config:
    """config.json, read strictly: a key that changes the computation and is not honoured stops the export."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    sliding_window: int | None = None
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
    def joined(self) -> Mapping[str, tuple[str, ...]]:
        """Layers, by the end of their names, whose rows the checkpoint keeps apart -> its names for them, in order."""
        return {}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def attention(self, layer: int) -> AttentionKind:
        """What a layer's tokens see of one another."""
        return AttentionKind(
            heads=self.num_attention_heads, kv_heads=self.num_key_value_heads, window=self.sliding_window
        )

    def module(self) -> Model:
        """The model, its weights not yet set."""
        raise NotImplementedError

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the model needs, in the order of its page. A tied lm_head has none of its own."""
        return {name: tuple(parameter.shape) for name, parameter in on_meta(self).named_parameters()}

    def sources(self) -> dict[str, Sources]:
        """Where a checkpoint has each tensor."""
        rows, found = split_rows(on_meta(self)), dict[str, Sources]()
        for name, shape in self.tensor_shapes().items():
            layer, _, kind = name.rpartition(".")
            end = next((end for end in self.joined if layer.endswith(end)), None)
            if end is None:
                found[name] = [(name, shape)]
                continue
            others, parts = (layer.removesuffix(end) + other for other in self.joined[end]), rows[name]
            found[name] = [
                (f"{other}.{kind}", (count, *shape[1:])) for other, (_, count) in zip(others, parts, strict=True)
            ]
        return found


class Layer(nn.Module):
    """One layer, in the two halves that attention separates: what lies between two attentions is one XNNPACK delegate,
    and the caller attends."""

    def before_attention(self, hidden: Tensor, rotation: Rotation) -> Any:
        """[batch, tokens, hidden] -> what the layer's QKV gives for it."""
        raise NotImplementedError

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The residual stream and what attention gave -> the residual stream after this layer."""
        raise NotImplementedError


class Model(nn.Module):
    """A decoder without KV cache and masks: the caller's `attend` has both, so that the cache may be an input and an
    output (ONNX), a buffer (ExecuTorch), or nothing at all (the pass that measures the loss).

    Parameter names are the checkpoint's.
    """

    def decoder_layers(self) -> Iterable[Layer]:
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [batch, tokens] -> the residual stream [batch, tokens, hidden]."""
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        """The residual stream -> logits [batch, tokens, vocab]."""
        raise NotImplementedError

    def after_logits(self, logits: Tensor) -> Tensor:
        """What is left to do with the logits."""
        return logits

    def stages(self, attend: Attend, *, last_token_only: bool = False) -> list[Step]:
        """The forward pass in steps: ids -> hidden, a step for each layer, hidden -> logits. An export that streams
        the weights stops and resumes between two of them."""

        def through(index: int, layer: Layer) -> Step:
            return lambda hidden: layer.after_attention(hidden, attend(index, layer.before_attention(hidden, None)))

        def head(hidden: Tensor) -> Tensor:
            return self.after_logits(self.head(hidden[:, -1:] if last_token_only else hidden))

        return [self.embed, *(through(index, layer) for index, layer in enumerate(self.decoder_layers())), head]


def on_meta(config: Config) -> Model:
    """The model without weights, for tracing: shapes only, no memory."""
    with torch.device("meta"):
        return config.module().eval().requires_grad_(False)
