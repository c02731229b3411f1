"""How many tokens ONNX Runtime's KV cache keeps where attention slides. Needs no library, so that a plan can ask."""

from __future__ import annotations

# Rows beyond the window, at least. When all rows are full, GroupQueryAttention moves the window to the beginning; a
# sequence can go back to the last such place and no further. Each row costs memory, and each move time.
SPARE_TOKENS = 64
ROW_STEP = 128  # so that a cache of the usual heads fills whole pages, those of 16 KB too
# One token later onnxruntime-genai 0.18 computes a sequence of a model of type phi3 anew, for long rope's sake, with
# whatever rope. It cannot in a cache that keeps only a window.
PHI3_TOKENS = 4096


def window_cache_tokens(window: int | None, context_tokens: int, model_type: str) -> int | None:
    """How many rows a cache has that keeps only the window; None where it keeps the whole context."""
    if window is None or (model_type == "phi3" and context_tokens > PHI3_TOKENS):
        return None
    rows = -(-(window + SPARE_TOKENS) // ROW_STEP) * ROW_STEP
    return rows if rows < context_tokens else None
