"""How many tokens an ExecuTorch program takes, answers and keeps. Needs no library, so that a plan can ask."""

from __future__ import annotations

# Tokens of one forward call. The runner cuts a longer prompt into pieces of this size.
PREFILL_TOKENS = 512
# The most tokens of one forward call that get logits.
LOGITS_ROWS = 16
# A ring's slots beyond the window: by so many tokens a sequence can go back after the ring has gone round. Guesses that
# were wrong need LOGITS_ROWS - 1. Each slot costs the reading of one key and value a token.
RING_SPARE_TOKENS = 64


def ring_tokens(window: int | None, context_tokens: int) -> int | None:
    """How many tokens the KV cache keeps, where it is a ring; None where it keeps the whole context."""
    if window is None or window >= context_tokens:
        return None
    return min(window + RING_SPARE_TOKENS, context_tokens)
