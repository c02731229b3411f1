"""What an artifact's engine rounds, done to the float reference: how far that puts its logits off.

An engine of 4-bit weights multiplies in 8 or 16 bits: it rounds the input of each product. An int8 KV cache rounds keys
and values. What that costs depends on the model, on its depth and on the outliers of its activations: from a hundredth
of a standard deviation of the logits to several. So it is measured on the model that is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from export.artifact import Artifact
from export.weights.kv_scales import LARGEST, rounded, scale_ids
from export.weights.slots import SlotId

GGML_BLOCK = 32  # llama.cpp's Q8_0, the type of a product's input
SMALLEST = 1e-30  # a scale; of a block of zeros


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """`values`: what becomes of a product's input; `everywhere`: of all that a module gives, too. `caches`: of each
    layer the scales of keys and values, [kv_heads, head_dim]."""

    values: Callable[[Tensor], Tensor]
    everywhere: bool = False
    caches: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attach(self, model: nn.Module) -> None:
        """Let a model round from now on."""
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: (self.values(inputs[0]),))
            if self.everywhere:
                module.register_forward_hook(lambda *call: self.values(call[-1]) if torch.is_tensor(call[-1]) else None)

    def cache(self) -> RoundedCache | None:
        """What transformers takes as a cache for one pass; None where the cache does not round."""
        return RoundedCache(self.caches) if self.caches else None


class RoundedCache(DynamicCache):  # type: ignore[misc]
    """transformers' cache for one pass: it gives a layer's keys and values back as an int8 cache has them, and keeps
    nothing."""

    def __init__(self, scales: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._scales = scales

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_others: Any, **_more: Any
    ) -> tuple[Tensor, Tensor]:
        """[batch, kv_heads, tokens, head_dim] each, keys rotated."""
        key, value = (
            rounded(states, scale[:, None])
            for states, scale in zip((key_states, value_states), self._scales[layer_idx], strict=True)
        )
        return key, value


def rounding_of(artifact: Artifact) -> Rounding | None:
    """What this artifact's engine rounds to fewer than 32 bits. None where that is nothing."""
    manifest = artifact.manifest
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        if manifest.scheme.activations.startswith(name):
            # Of GGUF the products alone; a graph of float16 has all that an operator gives in it.
            return Rounding(values=partial(as_type, dtype=dtype), everywhere=manifest.format == "onnx")
    if manifest.scheme.bits is None:
        return None
    if manifest.format == "executorch":
        return Rounding(values=by_row)
    if manifest.format == "gguf":
        return Rounding(values=partial(by_block, size=GGML_BLOCK))
    if manifest.engine.get("accuracy_level") == 4 and manifest.scheme.block_size is not None:
        values = partial(by_block, size=manifest.scheme.block_size)
        return Rounding(values=values, caches=cache_scales(artifact))
    return None


def cache_scales(artifact: Artifact) -> dict[int, tuple[Tensor, Tensor]]:
    """The scales of an ONNX artifact's int8 KV cache; empty for a cache of floats."""
    stored = onnx_ir.load(artifact.folder / "model.onnx").graph.initializers

    def read(id: SlotId) -> Tensor:
        value = stored[str(id)].const_value
        assert value is not None  # an initializer has one
        return torch.from_numpy(value.numpy().copy())

    ids = {layer: scale_ids(layer) for layer in range(artifact.manifest.model.layers)}
    return {layer: (read(key), read(value)) for layer, (key, value) in ids.items() if str(key) in stored}


def as_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to another type of float."""
    return values.to(dtype).float()


def by_block(values: Tensor, size: int) -> Tensor:
    """[..., columns] rounded to 8 bits with one scale for `size` columns, symmetric."""
    columns = values.shape[-1]
    blocks = nn.functional.pad(values, (0, -columns % size)).reshape(*values.shape[:-1], -1, size)
    scale = (blocks.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST)
    return blocks.div(scale).round().mul(scale).flatten(-2)[..., :columns]


def by_row(values: Tensor) -> Tensor:
    """[..., columns] rounded to 8 bits with one scale and one zero point for all columns; 0 stays 0."""
    low = values.amin(-1, keepdim=True).clamp(max=0)
    scale = ((values.amax(-1, keepdim=True).clamp(min=0) - low) / 255).clamp(min=SMALLEST)
    zero = (low / scale).round()
    return ((values / scale).round() - zero).clamp(0, 255).add(zero).mul(scale)
