"""The program around the delegates: embedding, rotation's rows, attention with its cache, logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from export.models.shape import Config, Model
from export.to_executorch.attention import make_attention, make_calls
from export.to_executorch.sizes import LOGITS_ROWS


class Runner(nn.Module):
    """The whole program: forward(tokens int64 [1, n], start_pos int64 [1]) -> logits float32 [rows, vocab].

    The KV cache is its attentions' state. There is one row, the last token's. A start_pos that is larger by
    2 * (rows - 1) * `context_tokens` asks for those of the last `rows` tokens, at most LOGITS_ROWS, so that guesses are
    checked in one call. The stock runner never does.

    Where a sequence may outgrow long rope's short factors, a call takes the long ones if it reaches beyond
    `original_context_tokens`, or if start_pos is counted from `context_tokens` on: so the first pieces of a long prompt
    say that they are long. The stock runner never does, and gets the original length as the context.
    """

    def __init__(
        self, config: Config, model: Model, pieces: list[nn.Module], context_tokens: int, ring_tokens: int | None
    ) -> None:
        """`model` embeds and finishes logits; `pieces` are what lies between attentions."""
        super().__init__()
        self.config, self.context_tokens = config, context_tokens
        self.calls = make_calls(config, context_tokens, ring_tokens)
        self.model, self.pieces = model, nn.ModuleList(pieces)
        kinds = [config.attention(layer) for layer in range(config.num_hidden_layers)]
        self.attentions = nn.ModuleList(
            make_attention(kind, config.head_dim, context_tokens, ring_tokens) for kind in kinds
        )
        for name, table in zip(("cos", "sin"), config.rope.stacked_tables(context_tokens), strict=True):
            self.register_buffer(name, torch.from_numpy(table)[None, :, None], persistent=False)

    def forward(self, tokens: Tensor, start_pos: Tensor) -> Tensor:
        config, count = self.config, tokens.shape[1]
        period = 2 * self.context_tokens
        rows = self.rows(torch.div(start_pos, period, rounding_mode="floor") + 1, count)
        start_pos = torch.remainder(start_pos, period)
        if config.rope.switches(self.context_tokens):
            original = config.rope.original_context_tokens
            said = start_pos >= self.context_tokens
            start_pos = torch.where(said, start_pos - self.context_tokens, start_pos)
            long = torch.logical_or(said, start_pos + count > original)
            start = self.number(start_pos, count, self.context_tokens)
            row = self.number(torch.where(long, start_pos + original, start_pos), count, self.context_tokens + original)
        else:
            start = row = self.number(start_pos, count, self.context_tokens)
        cos, sin = (torch.narrow(self.get_buffer(name), 1, row, count) for name in ("cos", "sin"))
        call = self.calls(start_pos, start, count)
        hidden = self.model.embed(tokens)
        query, key, value = self.pieces[0](hidden, cos, sin)
        for layer, attention in enumerate(self.attentions):
            attended = attention(query, key, value, call)
            if layer + 1 < config.num_hidden_layers:
                hidden, query, key, value = self.pieces[layer + 1](hidden, attended, cos, sin)
        last = (torch.narrow(part, 1, count - rows, rows) for part in (hidden, attended))
        (logits,) = self.pieces[-1](*last)
        return self.model.after_logits(logits[0])

    @staticmethod
    def rows(wanted: Tensor, count: Any) -> Any:
        """A tensor's one number, which is 1 to LOGITS_ROWS, and no more than `count`."""
        value = wanted[-1].item()
        for holds in (value >= 1, value <= LOGITS_ROWS, value <= count):
            torch._check(holds)  # type: ignore[no-untyped-call]
        return value

    @staticmethod
    def number(start: Tensor, count: Any, end: int) -> Any:
        """A tensor's one number, from which `count` on stays below `end`."""
        value = start[-1].item()
        for holds in (value >= 0, value < end, value + count <= end):
            torch._check(holds)  # type: ignore[no-untyped-call]
        return value
