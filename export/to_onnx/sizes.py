"""How many tokens onnxruntime's KV cache keeps where attention slides. Needs no library, so that a plan can ask."""

from __future__ import annotations

# Rows beyond the window, at least. When all are full, GroupQueryAttention moves the window to the beginning, and so far
# a sequence can go back at most. Guesses that were wrong need 16.
SPARE_TOKENS = 64
ROWS = 128  # the rows are a multiple of this, so that a cache fills whole pages, also those of 16 KB


def window_cache_tokens(window: int | None, context_tokens: int) -> int | None:
    """How many rows a cache has that keeps the window alone; None where it keeps the whole context."""
    if window is None:
        return None
    rows = -(-(window + SPARE_TOKENS) // ROWS) * ROWS
    return rows if rows < context_tokens else None
