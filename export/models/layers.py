"""The layers that model pages are made of, and how others are put in their place.

Three are torch's: nn.Linear, nn.RMSNorm, nn.LayerNorm. The others are here. As they are, they compute in
eager mode and are what the ONNX graph is traced from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

# A matrix's rows from the first on, as (part, how many); over and over again to the last row.
Rows = Sequence[tuple[str, int]]
# cos and sin, where a layer rotates query and key itself; None where attention does.
Rotation = tuple[Tensor, Tensor] | None

GELU_SLOPE = 1.702  # of the sigmoid that approximates GELU


class Embedding(nn.Embedding):
    """torch's, without the random numbers that it begins with: on the meta device they import torch's compiler, which
    takes a second or two."""

    def reset_parameters(self) -> None:
        """See the class."""


class SplitLinear(nn.Linear):
    """Several projections in one matrix, whose rows belong to parts. Its products come part after part."""

    def __init__(self, columns: int, rows: Rows, *, times: int = 1, bias: bool = False) -> None:
        super().__init__(columns, times * sum(count for _, count in rows), bias=bias)
        self.rows, self.times = tuple(rows), times

    def arrange(self, product: Tensor) -> Tensor:
        """Products in the order of the rows -> part after part."""
        if self.times == 1:
            return product
        parts: Tensor = torch.ops.phi_edge.part_after_part(product, [count for _, count in self.rows])
        return parts

    def forward(self, x: Tensor) -> Tensor:
        return self.arrange(super().forward(x))


class QKV(SplitLinear):
    """Query, key and value in one matrix: all heads' queries, all keys, all values; or, `grouped`, so for each key's
    group of heads. The products are packed in one tensor."""

    def __init__(
        self, columns: int, heads: int, kv_heads: int, head_dim: int, *, grouped: bool = False, bias: bool = False
    ) -> None:
        times = kv_heads if grouped else 1
        sizes = (("query", heads), ("key", kv_heads), ("value", kv_heads))
        super().__init__(columns, [(part, n // times * head_dim) for part, n in sizes], times=times, bias=bias)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim

    def forward(self, x: Tensor, rotation: Rotation = None) -> Any:
        """[batch, tokens, columns] -> [batch, tokens, (heads + 2 kv_heads) * head_dim], not rotated."""
        return super().forward(x)


class Gate(Protocol):
    """How the two projections of a gated feed-forward become one, in two steps: XNNPACK's program does the first before
    it makes the second product."""

    def open(self, gate: Tensor) -> Tensor:
        """What is done to the gate alone."""
        ...

    def join(self, gate: Tensor, up: Tensor) -> Tensor: ...


class SiLU:
    """silu(gate) * up."""

    def open(self, gate: Tensor) -> Tensor:
        return functional.silu(gate)

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * up


@dataclass(frozen=True)
class GeGELU:
    """gelu(gate) * (up + 1), both kept within `limit`: see gegelu."""

    limit: float

    def open(self, gate: Tensor) -> Tensor:
        return gate

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        product: Tensor = torch.ops.phi_edge.gegelu(gate, up, self.limit)
        return product


class Gated(SplitLinear):
    """The two projections of a gated feed-forward and what joins them: [..., columns] -> [..., inner]. All rows of the
    gate come first, then `other`'s; or they alternate."""

    def __init__(
        self,
        columns: int,
        inner: int,
        gate: Gate,
        *,
        other: str = "up",
        alternating: bool = False,
        bias: bool = False,
    ) -> None:
        times = inner if alternating else 1
        super().__init__(columns, [("gate", inner // times), (other, inner // times)], times=times, bias=bias)
        self.gate = gate

    def arrange(self, product: Tensor) -> Tensor:
        gate, up = super().arrange(product).chunk(2, dim=-1)
        return self.gate.join(self.gate.open(gate), up)


class NeverChosen(nn.Module):
    """Logits whose `indices` have the lowest value there is."""

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self.indices = list(indices)

    def forward(self, logits: Tensor) -> Tensor:
        masked: Tensor = torch.ops.phi_edge.never_chosen(logits, self.indices) if self.indices else logits
        return masked


# (path, layer) -> what is put in the layer's place; None leaves it.
Replace = Callable[[str, nn.Module], nn.Module | None]


def replace_layers(model: nn.Module, replace: Replace, path: str = "") -> None:
    """Put other layers in the place of a module's own. `path` is the module's name in the checkpoint, if not empty."""
    for name, layer in list(leaves(model)):
        other = replace(f"{path}.{name}" if path else name, layer)
        if other is not None:
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], other)


def leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a module by name."""
    return ((name, module) for name, module in model.named_modules() if name and next(module.children(), None) is None)


def split_rows(model: nn.Module) -> dict[str, Rows]:
    """Every tensor whose rows belong to parts -> its rows."""
    return {
        f"{path}.{name}": layer.rows
        for path, layer in leaves(model)
        if isinstance(layer, SplitLinear)
        for name, _ in layer.named_parameters()
    }


@torch.library.custom_op("phi_edge::part_after_part", mutates_args=())
def part_after_part(product: Tensor, counts: list[int]) -> Tensor:
    """[..., times * sum(counts)], by turns `counts` channels of each part -> the same, part after part."""
    turns = product.reshape(*product.shape[:-1], -1, sum(counts))
    return torch.cat([part.flatten(-2) for part in torch.split(turns, counts, dim=-1)], dim=-1)


@part_after_part.register_fake
def _(product: Tensor, counts: list[int]) -> Tensor:
    return torch.empty_like(product)


@torch.library.custom_op("phi_edge::gegelu", mutates_args=())
def gegelu(gate: Tensor, linear: Tensor, limit: float) -> Tensor:
    """gate * sigmoid(1.702 gate) * (linear + 1), both kept within `limit`."""
    gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    return gate * torch.sigmoid(GELU_SLOPE * gate) * (linear + 1)


@gegelu.register_fake
def _(gate: Tensor, linear: Tensor, limit: float) -> Tensor:
    return torch.empty_like(gate)


@torch.library.custom_op("phi_edge::never_chosen", mutates_args=())
def never_chosen(logits: Tensor, indices: list[int]) -> Tensor:
    """See NeverChosen."""
    result = logits.clone()
    result[..., indices] = torch.finfo(logits.dtype).min
    return result


@never_chosen.register_fake
def _(logits: Tensor, indices: list[int]) -> Tensor:
    return torch.empty_like(logits)
