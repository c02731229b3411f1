"""The loops over the weights of blocks: their ranges, and the choice among candidate scales (see quantize.py)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.weights.methods.compiled import compiled

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Bits = NDArray[np.int32]

# A float32's bits without its sign. As whole numbers they have the order of the magnitudes; and of whole numbers the
# compiler finds the largest eight or sixteen at a time, of floats one after another, for the sake of NaN.
MAGNITUDE = np.int32(0x7FFFFFFF)


# fastmath lets the sums be vectorised; it supposes finite weights, which export.weights.stream makes sure of.
@compiled(fastmath=True)
def quantise_blocks(
    blocks: Floats,
    candidates: Floats,
    candidate_zeros: Floats,
    last: np.float32,
    importance: Floats | None,
    codes: Codes,
    dequantised: Floats,
    scales: Floats,
    zeros: Floats,
    fitted: Floats,
    worst: Floats,
    squared: Floats,
) -> None:
    """blocks [n, block], candidate scales [c, n], their zeros [c, n] or [1, 1], the last code, the columns' importance
    [blocks in a row, block] or None -> everything that follows, in place; `fitted` only with importance.

    numba compiles it twice, without and with importance.
    """
    size = blocks.shape[1]
    zero_c, zero_n = candidate_zeros.shape[0] - 1, candidate_zeros.shape[1] - 1
    for n in range(blocks.shape[0]):
        least, scale, zero = np.float32(np.inf), np.float32(0), np.float32(0)
        if importance is not None:
            group = n % importance.shape[0]
        for c in range(candidates.shape[0]):
            candidate = candidates[c, n]
            candidate_zero = candidate_zeros[min(c, zero_c), min(n, zero_n)]
            low, high = -candidate_zero, last - candidate_zero
            inverse = np.float32(1) / candidate
            error = np.float32(0)
            if importance is None:
                for i in range(size):
                    level = min(max(np.rint(blocks[n, i] * inverse), low), high)
                    difference = level * candidate - blocks[n, i]
                    error += difference * difference
            else:
                for i in range(size):
                    level = min(max(np.rint(blocks[n, i] * inverse), low), high)
                    difference = level * candidate - blocks[n, i]
                    error += difference * difference * importance[group, i]
            if error < least:
                least, scale, zero = error, candidate, candidate_zero
        low, high = -zero, last - zero
        inverse = np.float32(1) / scale
        if importance is None:
            squared[n] = least
        else:
            products, squares, total = np.float32(0), np.float32(0), np.float32(0)
            for i in range(size):
                level = min(max(np.rint(blocks[n, i] * inverse), low), high)
                difference = level * scale - blocks[n, i]
                total += difference * difference
                products += level * blocks[n, i] * importance[group, i]
                squares += level * level * importance[group, i]
            squared[n] = total
            fitted[n] = products / squares if squares > 0 and products * scale > 0 else scale
        for i in range(size):
            level = min(max(np.rint(blocks[n, i] * inverse), low), high)
            codes[n, i] = np.int32(level + zero)
            dequantised[n, i] = level * scale
        largest = np.int32(0)
        for i in range(size):
            largest = max(largest, np.float32(dequantised[n, i] - blocks[n, i]).view(np.int32) & MAGNITUDE)
        scales[n], zeros[n], worst[n] = scale, zero, np.int32(largest).view(np.float32)


@compiled(fastmath=True)
def block_ranges(blocks: Bits, low: Bits, high: Bits) -> None:
    """The bits of float32 blocks [n, block] -> those of each block's least and greatest number [n], in place."""
    for n in range(blocks.shape[0]):
        least, greatest = MAGNITUDE, ~MAGNITUDE
        for i in range(blocks.shape[1]):
            # Of negative numbers the order is the other way round.
            ordered = blocks[n, i] ^ (blocks[n, i] >> np.int32(31) & MAGNITUDE)
            least, greatest = min(least, ordered), max(greatest, ordered)
        low[n] = least ^ (least >> np.int32(31) & MAGNITUDE)
        high[n] = greatest ^ (greatest >> np.int32(31) & MAGNITUDE)
