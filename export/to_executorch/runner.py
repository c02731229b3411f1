"""The program around the delegates: embedding, rotation's rows, attention with its cache, logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from export.models.shape import Config, Rows
from export.to_executorch.layers import Marks


class StandIns(Protocol):
    """A model as ExecuTorch gets it: its layers in stand-ins, and what happens between them, in plain operators."""

    def project(self, marks: Marks, name: str) -> nn.Module:
        """The first half of a layer: (hidden, cos, sin) -> query, key, value, each [1, tokens, heads, head_dim]."""
        ...

    def finish(self, marks: Marks, name: str) -> nn.Module:
        """The second half of a layer: (hidden, attended) -> hidden."""
        ...

    def head(self, marks: Marks) -> nn.Module:
        """hidden -> logits."""
        ...

    def parted(self) -> Mapping[str, Rows]:
        """The layers' tensors, by the end of their names, whose rows go to several stand-ins."""
        ...

    def attention(self, layer: int, context_tokens: int) -> nn.Module:
        """(query, key, value, start, masks) -> [1, tokens, heads, head_dim], with the layer's cache as its state."""
        ...

    def masks(self, context_tokens: int) -> nn.Module:
        """(start, count) -> what a call's attentions share, by number: 0 where a key is seen, -inf elsewhere,
        [tokens, context]."""
        ...

    def embedded(self) -> nn.Module:
        """What follows the embedding."""
        ...

    def answered(self) -> nn.Module:
        """What follows the logits."""
        ...


class CachedAttention(nn.Module):
    """Attention whose heads all see the same keys: mask 0, or every key so far. A scale of None is the usual one."""

    def __init__(self, config: Config, context_tokens: int, *, scale: float | None) -> None:
        super().__init__()
        self.scale = scale
        for part in ("key", "value"):
            cache = torch.zeros(1, context_tokens, config.num_key_value_heads, config.head_dim)
            self.register_buffer(part, cache, persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, start: Any, masks: Mapping[int, Tensor]) -> Tensor:
        keys, values, mask = self.get_buffer("key"), self.get_buffer("value"), masks.get(0)
        torch.ops.llama.update_cache(key, keys, start)
        torch.ops.llama.update_cache(value, values, start)
        attended: Tensor = torch.ops.llama.custom_sdpa(query, keys, values, start, mask, 0.0, mask is None, self.scale)
        return attended


class Runner(nn.Module):
    """The whole program: forward(tokens int64 [1, n], start_pos int64 [1]) -> logits float32 [1, vocab].

    The KV cache is its attentions' state.

    Where a sequence may outgrow long rope's short factors, a call takes the long ones if it reaches beyond
    `original_context_tokens`, or if start_pos is counted from `context_tokens` on: so the first pieces of a long prompt
    say that they are long. The stock runner never does, and is told the original length as the context.
    """

    def __init__(
        self, config: Config, stand_ins: StandIns, embedding: nn.Module, pieces: list[nn.Module], context_tokens: int
    ) -> None:
        super().__init__()
        self.config, self.context_tokens = config, context_tokens
        self.embedded, self.answered = stand_ins.embedded(), stand_ins.answered()
        self.masks = stand_ins.masks(context_tokens)
        self.embedding, self.pieces = embedding, nn.ModuleList(pieces)
        layers = range(config.num_hidden_layers)
        self.attentions = nn.ModuleList(stand_ins.attention(layer, context_tokens) for layer in layers)
        for name, table in zip(("cos", "sin"), config.rope.stacked_tables(context_tokens), strict=True):
            self.register_buffer(name, torch.from_numpy(table)[None, :, None], persistent=False)

    def forward(self, tokens: Tensor, start_pos: Tensor) -> Tensor:
        config, count = self.config, tokens.shape[1]
        if config.rope.switches(self.context_tokens):
            original = config.rope.original_context_tokens
            told = start_pos >= self.context_tokens
            start_pos = torch.where(told, start_pos - self.context_tokens, start_pos)
            long = torch.logical_or(told, start_pos + count > original)
            start = self.number(start_pos, count, self.context_tokens)
            row = self.number(torch.where(long, start_pos + original, start_pos), count, self.context_tokens + original)
        else:
            start = row = self.number(start_pos, count, self.context_tokens)
        cos, sin = (torch.narrow(self.get_buffer(name), 1, row, count) for name in ("cos", "sin"))
        masks = self.masks(start, count)
        hidden = self.embedded(self.embedding(tokens))
        query, key, value = self.pieces[0](hidden, cos, sin)
        for layer, attention in enumerate(self.attentions):
            attended = attention(query, key, value, start, masks).flatten(2)
            if layer + 1 < config.num_hidden_layers:
                hidden, query, key, value = self.pieces[layer + 1](hidden, attended, cos, sin)
        (logits,) = self.pieces[-1](hidden[:, -1:], attended[:, -1:])
        return self.answered(logits[:, -1])  # type: ignore[no-any-return]

    @staticmethod
    def number(start: Tensor, count: Any, end: int) -> Any:
        """A tensor's one number, from which `count` on stays below `end`."""
        value = start[-1].item()
        for holds in (value >= 0, value < end, value + count <= end):
            torch._check(holds)  # type: ignore[no-untyped-call]
        return value
