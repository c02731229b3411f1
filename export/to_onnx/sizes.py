"""What a graph's size and memory depend on, without the libraries that make it, so that a plan can ask: how many tokens
the KV cache keeps where attention slides, and the zero points that matrices share."""

from __future__ import annotations

from dataclasses import replace

from export.models.shape import EMBEDDING, Config
from export.scheme import Precision, Scheme

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


def shared_zero_points(config: Config, scheme: Scheme, *, budget_block: int | None = None) -> dict[int, int]:
    """Bits -> bytes of the zero points that all symmetric matrices of so many bits read, where a graph must have some
    (DirectML's): as many as the largest of them needs. With `budget_block`, the layers' block size under a budget: as
    many as it may need, for a budget may store a matrix in 8 bits, or in blocks of half the size."""
    found: dict[int, int] = {}
    for name, shape in config.tensor_shapes().items():
        precision = scheme.precision(name) if len(shape) == 2 else None
        if precision is None or (name == EMBEDDING and not config.tie_word_embeddings):
            continue
        ways = [precision]
        if budget_block is not None and name.startswith("model.layers."):
            ways.append(replace(precision, block_size=budget_block // 2))
            ways.append(Precision(bits=8, block_size=budget_block))
        for way in ways:
            if way.symmetric:
                size = shape[0] * replace(way, symmetric=False).zero_point_bytes(shape[1])
                found[way.bits] = max(found.get(way.bits, 0), size)
    return found
