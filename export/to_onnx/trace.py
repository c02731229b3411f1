"""The model with its KV cache as inputs and outputs, traced: what an ONNX graph is written from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.models.attention import Cached, attend
from export.models.shape import Config, Model, on_meta

DECODER = "decoder"  # what CachedModel calls the model, and traced names begin with


class CachedModel(nn.Module):
    """A model with its KV cache as inputs and outputs: what is traced for ONNX.

    forward(input_ids [1, tokens], last_position int32 [1], total_tokens int32 [1], sequence_tokens int32 [1], *past) ->
    logits [1, 1, vocab] of the last token, then the caches; past is key, value per layer, each
    [1, kv_heads, capacity, head_dim]. sequence_tokens chooses long rope's factors: see table_rows.
    """

    def __init__(self, config: Config, model: Model, cos: Tensor, sin: Tensor, *, switches: bool) -> None:
        super().__init__()
        self.config, self.decoder, self.switches = config, model, switches
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(
        self, input_ids: Tensor, last_position: Tensor, total_tokens: Tensor, sequence_tokens: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        present: list[Tensor] = []
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        rows = None
        if self.switches:
            original = self.config.rope.original_context_tokens
            rows = torch.ops.phi_edge.table_rows(input_ids, last_position, sequence_tokens, original)

        def one_layer(layer: int, qkv: Tensor) -> Tensor:
            call = Cached(qkv, past[2 * layer], past[2 * layer + 1], last_position, total_tokens, cos, sin, rows)
            attended, *cache = attend(self.config.attention(layer), call)
            present.extend(cache)
            return attended

        values = input_ids
        for stage in self.decoder.stages(one_layer, last_token_only=True):
            values = stage(values)
        return (values, *present)


def trace(config: Config, capacity: int) -> torch.export.ExportedProgram:
    """Trace CachedModel with a free number of tokens. No weight is read: the module is on the meta device."""
    rope = torch.empty(config.rope.stacked_rows(capacity), config.rope.rotary_dim // 2, device="meta")
    module = CachedModel(config, on_meta(config), rope, rope.clone(), switches=config.rope.switches(capacity)).eval()
    cache = [
        torch.empty(1, config.num_key_value_heads, capacity, config.head_dim, device="meta")
        for _ in range(2 * config.num_hidden_layers)
    ]
    ids = torch.zeros(1, min(3, capacity), dtype=torch.int64, device="meta")
    length = torch.zeros(1, dtype=torch.int32, device="meta")
    tokens = torch.export.Dim("tokens", min=1, max=capacity)
    shapes = {
        "input_ids": {1: tokens},
        "last_position": None,
        "total_tokens": None,
        "sequence_tokens": None,
        "past": tuple(None for _ in cache),
    }
    lengths = (length, length.clone(), length.clone())
    return torch.export.export(module, (ids, *lengths, *cache), dynamic_shapes=shapes, strict=False)
