"""transformers' model of a checkpoint in torch: in float32, and as torchao quantises it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ci.quality.engine import Logits

GROUP = 32


class Transformers:
    """A model that reads a text at once. While an answer grows, it keeps the attention's cache of what it has read."""

    def __init__(self, model: Any, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = model
        self._read: list[int] = []
        self._cache: Any = None

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Logits]:
        """See Engine.logits."""
        if first == len(ids):
            yield self._after(ids)
            return
        with torch.inference_mode():
            kept = torch.arange(first - 1, len(ids))
            yield from self._model(torch.tensor([list(ids)]), use_cache=False, logits_to_keep=kept).logits[0].numpy()

    def _after(self, ids: Sequence[int]) -> Logits:
        if not self._read or list(ids[:-1]) != self._read:
            self._read, self._cache = [], None
        with torch.inference_mode():
            new = torch.tensor([list(ids[len(self._read) :])])
            found = self._model(new, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._read, self._cache = list(ids), found.past_key_values
        logits: Logits = found.logits[0, -1].numpy()
        return logits


def float32(checkpoint: Path) -> Any:
    """The checkpoint's own model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def quantise_8da4w(model: Any) -> int:
    """torchao's int4 weights and 8-bit dynamic activations, in place; the bytes that a device would store.

    It follows torchao's published Phi-4-mini: groups of 32 with bfloat16 scales, the head untied and quantised like all
    linear layers, the embedding in 8 bits with a scale for each row.
    """
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    embedding = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0), scale_dtype=torch.bfloat16)
    quantize_(model, embedding, filter_fn=lambda module, _: isinstance(module, nn.Embedding))
    int4: torch.dtype = getattr(torch, "int4")  # noqa: B009  torch's stubs lack it
    linear = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=int4, weight_granularity=PerGroup(GROUP), weight_scale_dtype=torch.bfloat16
    )
    quantize_(model, linear)
    return sum(_stored(module) for module in model.modules())


def _stored(module: nn.Module) -> int:
    """Bytes of a module's own weight: codes and bfloat16 scales, or bfloat16 where it stayed float."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return 0
    if isinstance(module, nn.Linear):
        return int(weight.numel() // 2 + weight.numel() // GROUP * 2)
    if isinstance(module, nn.Embedding):
        return int(weight.numel() + weight.shape[0] * 2)
    return int(weight.numel() * 2)
