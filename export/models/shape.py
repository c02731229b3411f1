"""What every model of the family offers, whichever file it is in: the shape that both formats and the stream rely on.

Nothing here computes. A model is traced, streamed and laid out through these names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from export.models.rope import RopeConfig

# attend(layer, qkv): qkv is [batch, tokens, (heads + 2 * kv_heads) * head_dim], before rotation, its rows in the
# checkpoint's order; the result is [batch, tokens, heads * head_dim].
Attend = Callable[[int, Tensor], Tensor]
Step = Callable[[Tensor], Tensor]
# A parted tensor's rows from the first on, as (part, how many); over and over again to the last row.
Rows = Sequence[tuple[str, int]]

EMBEDDING = "model.embed_tokens.weight"


class Config(Protocol):
    """config.json, read strictly."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def intermediate_size(self) -> int: ...

    @property
    def num_hidden_layers(self) -> int: ...

    @property
    def num_attention_heads(self) -> int: ...

    @property
    def num_key_value_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def qkv_size(self) -> int: ...

    @property
    def max_position_embeddings(self) -> int: ...

    @property
    def sliding_window(self) -> int | None: ...

    @property
    def tie_word_embeddings(self) -> bool: ...

    @property
    def rope(self) -> RopeConfig: ...

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Lengths at which attention changes."""
        ...

    @property
    def parameters(self) -> int: ...

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the model needs, in the order of the forward pass."""
        ...

    def interleaved(self) -> Mapping[str, Rows]:
        """The tensors of a layer, by the end of their names, whose rows an ONNX graph wants part after part."""
        ...

    def module(self) -> Model:
        """The model, its weights not yet set."""
        ...


class Model(Protocol):
    """A torch module that holds no KV cache and makes no mask: the caller's `attend` does both."""

    def stages(self, attend: Attend, *, last_token_only: bool = False) -> list[Step]:
        """The forward pass in steps: ids -> hidden, a step for each layer, hidden -> logits. An export that streams
        the weights stops and resumes between two of them."""
        ...

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
        """One layer's attention as one operator: see export.models.attention for the arguments."""
        ...


def on_meta(config: Config) -> Model:
    """The module without weights, for tracing: shapes only, no memory."""
    with torch.device("meta"):
        model = config.module()
    assert isinstance(model, torch.nn.Module)
    result: Model = model.eval().requires_grad_(False)
    return result
