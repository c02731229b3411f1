"""How much ci/gpu_check.py runs on each provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# provider -> the small variants that it has operators for, and their contexts: past the window, past long rope's switch
# where the provider has it, past the blocks up to which Phi-3-small is dense.
VARIANTS: Mapping[str, Mapping[str, int]] = {
    "cuda": {"phi-3-mini-4k": 2304, "phi-3-mini-128k": 4352, "phi-3-small-8k": 2048, "phi-3-small-128k": 8448},
    "webgpu": {"phi-3-mini-4k": 2304, "phi-3-mini-128k": 4352},
    "cpu": {"phi-3-mini-4k": 2304, "phi-3-mini-128k": 4352, "phi-3-small-8k": 2048},
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is run."""

    adapter: str | None
    prompts: int = 20
    full_prompts: int = 2  # of an artifact of full size, which the CPU computes too
    tokens: int = 24  # of each answer
    full_tokens: int = 8
    lengths: Sequence[int] = (128, 1024)
    steps: int = 64
    tiny: bool = True
    variants: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: VARIANTS)


QUICK: Mapping[str, Any] = {
    "prompts": 3,
    "tokens": 4,
    "full_prompts": 1,
    "lengths": (16, 24),
    "steps": 3,
    "variants": {},
}
# provider -> the exports of the tiny model: target, activations.
EXPORTS: Mapping[str, Sequence[tuple[str, str]]] = {
    "cuda": (("cuda", "float16"),),
    "webgpu": (("webgpu", "float16"), ("webgpu", "float32")),
    "cpu": (("cpu", "float32"),),
}
