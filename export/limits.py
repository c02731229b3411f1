"""The sizes that a manifest may give: whoever opens an artifact makes loops and buffers of them.

Standard library only: a device needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import ArtifactError

if TYPE_CHECKING:
    from export.artifact import Manifest

MOST_CONTEXT_TOKENS = 1 << 24
MOST_LAYERS = 4096


def check_limits(path: Path, manifest: Manifest) -> None:
    """Refuse sizes that no model has, and ids outside the vocabulary. Raises ArtifactError."""
    model, tokens = manifest.model, manifest.tokens
    limits = {
        "context_tokens": (manifest.context_tokens, 1, MOST_CONTEXT_TOKENS),
        "model.layers": (model.layers, 1, MOST_LAYERS),
        "model.hidden_size": (model.hidden_size, 1, 1 << 20),
        "model.heads": (model.heads, 1, 1 << 16),
        "model.kv_heads": (model.kv_heads, 1, model.heads),
        "model.head_dim": (model.head_dim, 1, 1 << 16),
        "model.vocab_size": (model.vocab_size, 1, 1 << 24),
        "model.parameters": (model.parameters, 0, 1 << 50),
        "window_tokens": (manifest.window_tokens, 1, 1 << 31),
        "rope.switch_tokens": (manifest.rope.switch_tokens, 1, 1 << 31),
        "memory.kv_bytes_per_token": (manifest.memory.kv_bytes_per_token, 0, 1 << 40),
        **{f"tokens.{name}": (getattr(tokens, name), 0, model.vocab_size - 1) for name in ("bos", "pad")},
        **{f"tokens.stop[{place}]": (id, 0, model.vocab_size - 1) for place, id in enumerate(tokens.stop)},
        **{f"files.{name}": (file.bytes, 0, 1 << 50) for name, file in manifest.files.items()},
    }
    for name, (seen, low, high) in limits.items():
        if seen is not None and not low <= seen <= high:
            raise ArtifactError(f"{path}: {name:.200} is {seen}; allowed: {low} to {high}; export it again")
