"""The layers that ExecuTorch is given in the place of a model page's, in the form that XNNPACK lowers.

Their weights are constants that tell which tensor they are for (PlaceholderTags); the real bytes are streamed into
their places later, and no weight is ever in memory here. XNNPACK cannot cut a tensor of unknown length, so a matrix
whose rows belong to parts is one matrix for each part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.models.layers import GELU_SLOPE, QKV, Gate, Gated, GeGELU, NeverChosen, Replace, Rotation, Rows, SplitLinear
from export.models.shape import Config
from export.scheme import EMBEDDING, Precision, Scheme
from export.to_executorch.internals import PlaceholderTags
from export.weights.slots import SlotId

_decomposed = torch.ops.quantized_decomposed


def export_layers(tags: PlaceholderTags, config: Config, scheme: Scheme) -> Replace:
    """What is put in the place of a page's layers: see export.models.layers.replace_layers."""

    def replace(path: str, layer: nn.Module) -> nn.Module | None:
        match layer:
            case QKV():
                return RotatedProjection(tags, path, layer, config.rope.rotary_dim, scheme)
            case Gated():
                return SplitGated(tags, path, layer, scheme)
            case nn.Linear() if path == "lm_head" and config.tie_word_embeddings and scheme.row_table:
                assert scheme.table
                return DynamicLinear(tags, path, layer.out_features, layer, scheme.table, "", EMBEDDING)
            case nn.Linear():
                return make_linear(tags, path, layer.out_features, layer, scheme)
            case nn.Embedding():
                return QuantisedEmbedding(tags, path, layer, scheme)
            case nn.RMSNorm():
                return Norm(tags, path, layer)
            case nn.LayerNorm():
                return LayerNorm(tags, path, layer)
            case NeverChosen():
                return DummyMask(layer.indices, config.vocab_size) if layer.indices else nn.Identity()
        return None

    return replace


def part_rows(layer: SplitLinear, rotary_dim: int) -> Rows:
    """A matrix's rows by part, as XNNPACK gets them: query and key of each head in the two halves that are rotated
    against one another, and the rest that is not."""
    if not isinstance(layer, QKV):
        return layer.rows
    half, rest = rotary_dim // 2, layer.head_dim - rotary_dim
    rows: list[tuple[str, int]] = []
    for part, count in layer.rows:
        head = [(f"{part}0", half), (f"{part}1", half)] + ([(f"{part}2", rest)] if rest else [])
        rows += [(part, count)] if part == "value" else head * (count // layer.head_dim)
    return rows


def part_sizes(layer: SplitLinear, rows: Rows) -> Mapping[str, int]:
    """How many rows each part has in all."""
    times = layer.out_features // sum(count for _, count in rows)
    return {part: times * sum(count for other, count in rows if other == part) for part in dict(rows)}


class DynamicLinear(nn.Module):
    """Activations quantised to int8 row by row while the model runs. Weights of 4 bits, one scale per block, in bf16;
    or of 8 bits, one scale per row, in float32. `tensor` names the weights' slots."""

    bias: Tensor | None

    def __init__(
        self,
        tags: PlaceholderTags,
        path: str,
        rows: int,
        layer: nn.Linear,
        precision: Precision,
        part: str,
        tensor: str,
    ) -> None:
        super().__init__()
        self.precision, columns = precision, layer.in_features
        codes, scales = (SlotId(tensor, kind, part) for kind in ("codes", "scales"))
        if precision.bits == 4:
            blocks = (rows, precision.blocks(columns))
            self.register_buffer("codes", tags.codes(codes, (rows, columns)))
            self.register_buffer("scales", tags.floats(scales, blocks, torch.bfloat16))
            self.register_buffer("zeros", torch.zeros(blocks))
        else:
            self.register_buffer("codes", tags.wide_codes(codes, (rows, columns)))
            self.register_buffer("scales", tags.floats(scales, (rows,)))
            self.register_buffer("zeros", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("bias", tagged_bias(tags, path, rows, layer, part))

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.quantise(x))

    @staticmethod
    def quantise(x: Tensor) -> Tensor:
        """What XNNPACK fuses into one conversion; gate and up share it."""
        scale, zero = _decomposed.choose_qparams_per_token_asymmetric.default(x, torch.int8)
        x = _decomposed.quantize_per_token.default(x, scale, zero, -128, 127, torch.int8)
        y: Tensor = _decomposed.dequantize_per_token.default(x, scale, zero, -128, 127, torch.int8, torch.float32)
        return y

    def multiply(self, x: Tensor) -> Tensor:
        if self.precision.bits == 4:
            weight = _decomposed.dequantize_per_channel_group.default(
                self.codes, self.scales, self.zeros, -8, 7, torch.int8, self.precision.block_size, torch.float32
            )
        else:
            weight = _decomposed.dequantize_per_channel.default(
                self.codes, self.scales, self.zeros, 0, -127, 127, torch.int8
            )
        return functional.linear(x, weight, self.bias)


class FloatLinear(nn.Module):
    """float32 weights, for the scheme fp32."""

    bias: Tensor | None

    def __init__(self, tags: PlaceholderTags, path: str, rows: int, layer: nn.Linear, part: str) -> None:
        super().__init__()
        self.register_buffer("weight", tags.floats(SlotId(f"{path}.weight", part=part), (rows, layer.in_features)))
        self.register_buffer("bias", tagged_bias(tags, path, rows, layer, part))

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x)

    @staticmethod
    def quantise(x: Tensor) -> Tensor:
        return x

    def multiply(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.get_buffer("weight"), self.bias)


def make_linear(
    tags: PlaceholderTags, path: str, rows: int, layer: nn.Linear, scheme: Scheme, part: str = ""
) -> DynamicLinear | FloatLinear:
    """The linear layer of this scheme, for `rows` of a layer's rows: all of them, or a part's."""
    precision = scheme.precision(f"{path}.weight")
    if precision is None:
        return FloatLinear(tags, path, rows, layer, part)
    return DynamicLinear(tags, path, rows, layer, precision, part, f"{path}.weight")


def tagged_bias(tags: PlaceholderTags, path: str, rows: int, layer: nn.Linear, part: str) -> Tensor | None:
    return None if layer.bias is None else tags.floats(SlotId(f"{path}.bias", part=part), (rows,))


class Norm(nn.Module):
    """RMS norm. The mean of squares is a product with a row of 1 / n: XNNPACK has no mean over the last axis, and
    left to the portable kernels the norms would split every delegate in two."""

    def __init__(self, tags: PlaceholderTags, path: str, layer: nn.RMSNorm) -> None:
        super().__init__()
        (size,), self.epsilon = layer.normalized_shape, layer.eps or 0.0
        self.register_buffer("weight", tags.floats(SlotId(f"{path}.weight"), (size,)))
        self.register_buffer("mean", torch.full((1, size), 1.0 / size))

    def forward(self, x: Tensor) -> Tensor:
        mean_square = functional.linear(x * x, self.get_buffer("mean"))
        return x * torch.rsqrt(mean_square + self.epsilon) * self.get_buffer("weight")


class LayerNorm(nn.Module):
    """Layer norm with bias, its two means made as Norm makes its one."""

    def __init__(self, tags: PlaceholderTags, path: str, layer: nn.LayerNorm) -> None:
        super().__init__()
        (size,), self.epsilon = layer.normalized_shape, layer.eps
        for name in ("weight", "bias"):
            self.register_buffer(name, tags.floats(SlotId(f"{path}.{name}"), (size,)))
        self.register_buffer("mean", torch.full((1, size), 1.0 / size))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - functional.linear(x, self.get_buffer("mean"))
        variance = functional.linear(centred * centred, self.get_buffer("mean"))
        return centred * torch.rsqrt(variance + self.epsilon) * self.get_buffer("weight") + self.get_buffer("bias")


class RotatedProjection(nn.Module):
    """The projection before attention, and the rotation: (x, (cos, sin)) -> query, key, value, each
    [1, tokens, heads, head_dim].

    The rows that make the first rotated half of every head are one matrix, those of the second half another, so that
    the halves need not be cut out of a tensor of unknown length. cos, sin: [1, tokens, 1, rotary_dim / 2].
    """

    def __init__(self, tags: PlaceholderTags, path: str, layer: QKV, rotary_dim: int, scheme: Scheme) -> None:
        super().__init__()
        self.heads, self.kv_heads = layer.heads, layer.kv_heads
        sizes = part_sizes(layer, part_rows(layer, rotary_dim))
        self.parts = nn.ModuleDict(
            {part: make_linear(tags, path, rows, layer, scheme, part) for part, rows in sizes.items()}
        )

    def forward(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        assert rotation
        x = self.parts["value"].quantise(x)  # type: ignore[operator]
        query = self.rotated("query", self.heads, x, *rotation)
        key = self.rotated("key", self.kv_heads, x, *rotation)
        return query, key, self.part("value", self.kv_heads, x)

    def part(self, part: str, heads: int, x: Tensor) -> Tensor:
        """One part's product, by head."""
        product: Tensor = self.parts[part].multiply(x)  # type: ignore[operator]
        return product.view(1, -1, heads, product.shape[-1] // heads)

    def rotated(self, part: str, heads: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = self.part(f"{part}0", heads, x), self.part(f"{part}1", heads, x)
        pieces = [first * cos - second * sin, second * cos + first * sin]
        if f"{part}2" in self.parts:
            pieces.append(self.part(f"{part}2", heads, x))
        return torch.cat(pieces, dim=-1)


class SplitGated(nn.Module):
    """The two projections of a gated feed-forward as two matrices, which share one conversion of x."""

    def __init__(self, tags: PlaceholderTags, path: str, layer: Gated, scheme: Scheme) -> None:
        super().__init__()
        sizes = part_sizes(layer, layer.rows)
        self.gate, self.up = (make_linear(tags, path, rows, layer, scheme, part) for part, rows in sizes.items())
        self.how: Gate = PlainGeGELU(layer.gate.limit) if isinstance(layer.gate, GeGELU) else layer.gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate.quantise(x)
        gate = self.how.open(self.gate.multiply(x))
        return self.how.join(gate, self.up.multiply(x))


@dataclass(frozen=True)
class PlainGeGELU:
    """GeGELU in operators that XNNPACK has."""

    limit: float

    def open(self, gate: Tensor) -> Tensor:
        return gate.clamp(max=self.limit)

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        up = up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(GELU_SLOPE * gate) * (up + 1.0)


class DummyMask(nn.Module):
    """The lowest logit there is for dummy tokens."""

    def __init__(self, indices: list[int], vocab_size: int) -> None:
        super().__init__()
        dummies = torch.zeros(1, vocab_size, dtype=torch.bool)
        dummies[:, indices] = True
        self.register_buffer("dummies", dummies, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        return torch.where(self.get_buffer("dummies"), torch.finfo(torch.float32).min, logits)


class QuantisedEmbedding(nn.Module):
    """ExecuTorch's embedding operators: 4-bit (the even column in the high half of a byte) or 8-bit codes."""

    def __init__(self, tags: PlaceholderTags, path: str, layer: nn.Embedding, scheme: Scheme) -> None:
        super().__init__()
        rows, columns, name = layer.num_embeddings, layer.embedding_dim, f"{path}.weight"
        precision = scheme.precision(name)
        self.bits = bits = precision.bits if precision else None
        if precision is None:
            self.register_buffer("weight", tags.floats(SlotId(name), (rows, columns)), persistent=False)
            return
        kind = torch.uint8 if bits == 4 else torch.int8
        codes = tags.packed(SlotId(name, "codes"), (rows, columns * precision.bits // 8), kind)
        self.register_buffer("codes", codes, persistent=False)
        scales = tags.floats(SlotId(name, "scales"), (rows, precision.blocks(columns)))
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        if self.bits is None:
            return functional.embedding(ids, self.get_buffer("weight"))
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        if self.bits == 4:
            hidden: Tensor = _decomposed.embedding_4bit.default(codes, scales, None, -8, 7, ids)
        else:
            hidden = _decomposed.embedding_byte.default(codes, scales, None, -128, 127, ids)
        return hidden
