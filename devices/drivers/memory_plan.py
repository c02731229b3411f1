"""Does an artifact fit into a device's memory? Asked before it is pushed and loaded, answered from the manifest."""

from __future__ import annotations

from export.artifact import Manifest
from runtimes.system.conditions import Conditions

# Python, numpy and ONNX Runtime without a model, resident on the emulated Pi 5: 60 MB; the system's own share is more.
SYSTEM_BYTES = 400_000_000


def needed_bytes(manifest: Manifest) -> int:
    """Weights and the KV cache of the whole context."""
    return manifest.memory.weights_bytes + manifest.context_tokens * manifest.memory.kv_bytes_per_token


def refusal(manifest: Manifest, conditions: Conditions) -> str | None:
    """Why the device can never hold it; None if it can, or does not tell its size."""
    total = conditions.memory_total_bytes
    if total is None or needed_bytes(manifest) + SYSTEM_BYTES <= total:
        return None
    memory = manifest.memory
    room = total - SYSTEM_BYTES - memory.weights_bytes
    fitting = room // memory.kv_bytes_per_token if memory.kv_bytes_per_token else 0
    advice = f"export it with --context {fitting // 256 * 256} or less" if fitting >= 256 else "take a smaller model"
    return (
        f"the artifact needs {_gb(needed_bytes(manifest))} (weights {_gb(memory.weights_bytes)}, a context of "
        f"{manifest.context_tokens} tokens {_gb(manifest.context_tokens * memory.kv_bytes_per_token)}), and the device "
        f"has {_gb(total)}, of which the system takes {_gb(SYSTEM_BYTES)}; {advice}"
    )


def warning(manifest: Manifest, conditions: Conditions) -> str | None:
    """Why it may have to swap; None if there is room at this moment, or the device does not tell."""
    available = conditions.memory_available_bytes
    if available is None or needed_bytes(manifest) <= available:
        return None
    return (
        f"the artifact needs {_gb(needed_bytes(manifest))} and only {_gb(available)} of the device's memory are "
        "available; it may swap: close what else runs there"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
