"""Does an artifact fit into a device's memory? Asked before it is pushed and loaded, answered from the manifest."""

from __future__ import annotations

from export.artifact import Manifest
from runtimes.system.conditions import Conditions

SYSTEM_BYTES = 300_000_000  # what a board's system takes for itself, without a desktop


def needed_bytes(manifest: Manifest) -> int:
    """With the KV cache of a full context."""
    return manifest.memory.needed_bytes(manifest.context_tokens)


def refusal(manifest: Manifest, conditions: Conditions, system_bytes: int = SYSTEM_BYTES) -> str | None:
    """Why it can never fit into the device beside its system; None if it can, or the device cannot say how much memory
    it has."""
    total = conditions.memory_total_bytes
    if total is None or needed_bytes(manifest) + system_bytes <= total:
        return None
    memory, tokens = manifest.memory, manifest.context_tokens
    without_cache = memory.needed_bytes(0)
    cache = needed_bytes(manifest) - without_cache
    fitting = (total - system_bytes - without_cache) // memory.kv_bytes_per_token if memory.kv_bytes_per_token else 0
    advice = f"export it with --context {fitting // 256 * 256} or less" if fitting >= 256 else "take a smaller model"
    return (
        f"the artifact needs {_gb(needed_bytes(manifest))} (weights and engine {_gb(without_cache)}, a context of "
        f"{tokens} tokens {_gb(cache)}), and the device has {_gb(total)}, of which the "
        f"system takes {_gb(system_bytes)}; {advice}"
    )


def warning(manifest: Manifest, conditions: Conditions) -> str | None:
    """Why it may have to swap; None if enough memory is available now, or the device cannot say."""
    available = conditions.memory_available_bytes
    if available is None or needed_bytes(manifest) <= available:
        return None
    return (
        f"the artifact needs {_gb(needed_bytes(manifest))}, and only {_gb(available)} of the device's memory are "
        "available; it may swap: close other programs there"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
