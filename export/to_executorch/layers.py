"""Stand-ins for the model's layers, in the form that XNNPACK lowers: same shapes, marked constants for weights.

Every constant is filled with a value of its own, so that after lowering each block of bytes tells which tensor it
stands for (`Marks.owner`). The real bytes are streamed into their places later; no weight is ever in memory here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.models.shape import Config, Rows
from export.scheme import Scheme

_decomposed = torch.ops.quantized_decomposed


@dataclass
class Marks:
    """Hands out constants, and recognises them again by their length and first bytes."""

    owners: dict[tuple[int, bytes], str] = field(default_factory=dict)

    def floats(self, name: str, shape: tuple[int, ...], stored: torch.dtype = torch.float32) -> Tensor:
        """A float32 constant that will be stored as `stored`."""
        value = torch.tensor([1.0 + len(self.owners) / 64])  # exact in bf16
        self._claim(name, shape, value.to(stored).view(torch.uint8).numpy().tobytes())
        return value.expand(shape).contiguous()

    def codes(self, name: str, shape: tuple[int, int]) -> Tensor:
        """int8 codes in -8..7 that will be stored two to a byte."""
        code = sum(owner.endswith("_q") for owner in self.owners.values())
        assert code < 16, "a piece has at most 16 quantised matrices"
        self._claim(name, (shape[0], shape[1] // 2), bytes([code | code << 4]))
        return torch.full(shape, code - 8, dtype=torch.int8)

    def _claim(self, name: str, shape: tuple[int, ...], item: bytes) -> None:
        length = torch.Size(shape).numel() * len(item)
        self.owners[length, (item * 4)[:4]] = name

    def owner(self, data: bytes) -> str | None:
        """The tensor that these bytes stand for; None for a true constant."""
        return self.owners.get((len(data), data[:4]))


class DynamicLinear(nn.Module):
    """int4 weights, activations quantised to int8 row by row while the model runs; one scale per block, in bf16.
    `bias` names a tensor."""

    bias: Tensor | None

    def __init__(
        self, marks: Marks, name: str, rows: int, columns: int, scheme: Scheme, bias: str | None = None
    ) -> None:
        super().__init__()
        assert scheme.block_size
        self.block_size = scheme.block_size
        blocks = (rows, columns // self.block_size)
        self.register_buffer("codes", marks.codes(f"{name}_q", (rows, columns)))
        self.register_buffer("scales", marks.floats(f"{name}_scales", blocks, torch.bfloat16))
        self.register_buffer("zeros", torch.zeros(blocks))
        self.register_buffer("bias", None if bias is None else marks.floats(bias, (rows,)))

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
        weight = _decomposed.dequantize_per_channel_group.default(
            self.codes, self.scales, self.zeros, -8, 7, torch.int8, self.block_size, torch.float32
        )
        return functional.linear(x, weight, self.bias)


class FloatLinear(nn.Module):
    """float32 weights, for the scheme fp32."""

    bias: Tensor | None

    def __init__(self, marks: Marks, name: str, rows: int, columns: int, bias: str | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", marks.floats(name, (rows, columns)))
        self.register_buffer("bias", None if bias is None else marks.floats(bias, (rows,)))

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x)

    @staticmethod
    def quantise(x: Tensor) -> Tensor:
        return x

    def multiply(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.get_buffer("weight"), self.bias)


def make_linear(
    marks: Marks, name: str, rows: int, columns: int, scheme: Scheme, bias: str | None = None
) -> DynamicLinear | FloatLinear:
    """The linear layer of this scheme."""
    if scheme.bits is None:
        return FloatLinear(marks, name, rows, columns, bias)
    return DynamicLinear(marks, name, rows, columns, scheme, bias)


class Norm(nn.Module):
    """RMS norm. The mean of squares is a product with a row of 1 / n: XNNPACK has no mean over the last axis, and
    left to the portable kernels the norms would split every delegate in two."""

    def __init__(self, marks: Marks, name: str, size: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("weight", marks.floats(name, (size,)))
        self.register_buffer("mean", torch.full((1, size), 1.0 / size))

    def forward(self, x: Tensor) -> Tensor:
        mean_square = functional.linear(x * x, self.get_buffer("mean"))
        return x * torch.rsqrt(mean_square + self.epsilon) * self.get_buffer("weight")


class LayerNorm(nn.Module):
    """Layer norm with bias, its two means made as Norm makes its one. `name` is the norm's without `.weight`."""

    def __init__(self, marks: Marks, name: str, size: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        for part in ("weight", "bias"):
            self.register_buffer(part, marks.floats(f"{name}.{part}", (size,)))
        self.register_buffer("mean", torch.full((1, size), 1.0 / size))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - functional.linear(x, self.get_buffer("mean"))
        variance = functional.linear(centred * centred, self.get_buffer("mean"))
        return centred * torch.rsqrt(variance + self.epsilon) * self.get_buffer("weight") + self.get_buffer("bias")


class RotatedProjection(nn.Module):
    """The projection before attention, and the rotation: (x, cos, sin) -> query, key, value, each
    [1, tokens, heads, head_dim].

    The rows that make the first rotated half of every head are one matrix, those of the second half another, so that
    the halves need not be cut out of a tensor of unknown length. cos, sin: [1, tokens, 1, rotary_dim / 2].
    `name` is the projection's without `.weight`; `rows` say which of its rows belong to which part.
    """

    def __init__(
        self, marks: Marks, name: str, rows: Rows, config: Config, scheme: Scheme, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.parts, times = nn.ModuleDict(), config.qkv_size // sum(count for _, count in rows)
        for part in dict.fromkeys(part for part, _ in rows):
            count = times * sum(number for other, number in rows if other == part)
            self.parts[part] = make_linear(
                marks,
                f"{name}.weight#{part}",
                count,
                config.hidden_size,
                scheme,
                f"{name}.bias#{part}" if bias else None,
            )
        self.config = config

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = DynamicLinear.quantise(x) if isinstance(self.parts["value"], DynamicLinear) else x
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        query = self.rotated("query", heads, x, cos, sin)
        key = self.rotated("key", kv_heads, x, cos, sin)
        return query, key, self.part("value", kv_heads, x)

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


class QuantisedEmbedding(nn.Module):
    """ExecuTorch's embedding operators: 4-bit (the even column in the high half of a byte) or 8-bit codes."""

    def __init__(self, marks: Marks, name: str, config: Config, scheme: Scheme) -> None:
        super().__init__()
        rows, columns, bits = config.vocab_size, config.hidden_size, scheme.embedding_bits
        self.bits = bits
        if bits is None:
            self.register_buffer("weight", marks.floats(name, (rows, columns)), persistent=False)
            return
        assert scheme.block_size
        stored = columns * bits // 8
        marks.owners[rows * stored, bytes([7] * 4)] = f"{name}_q"
        kind = torch.uint8 if bits == 4 else torch.int8
        self.register_buffer("codes", torch.full((rows, stored), 7, dtype=kind), persistent=False)
        scales = marks.floats(f"{name}_scales", (rows, columns // scheme.block_size))
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
