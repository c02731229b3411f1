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


# fastmath lets the sums be vectorised; it supposes finite weights, which export.weights.stream makes sure of. Searching
# and rounding are two loops: in one they took a sixth longer.
@compiled(fastmath=True)
def search_scales(
    blocks: Floats,
    candidates: Floats,
    candidate_zeros: Floats,
    last: np.float32,
    importance: Floats | None,
    scales: Floats,
    zeros: Floats,
) -> None:
    """blocks [n, block], candidate scales [c, n], their zeros [c, n] or [1, 1], the last code, the columns' importance
    [blocks in a row, block] or None -> the scale and the zero of the least error [n], in place.

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
        scales[n], zeros[n] = scale, zero


@compiled(fastmath=True)
def fit_scales(
    blocks: Floats, scales: Floats, zeros: Floats, last: np.float32, importance: Floats, fitted: Floats
) -> None:
    """Blocks and importance as above, scales and zeros [n] -> the scale that fits the codes best [n], in place."""
    for n in range(blocks.shape[0]):
        group, scale = n % importance.shape[0], scales[n]
        low, high = -zeros[n], last - zeros[n]
        inverse = np.float32(1) / scale
        products, squares = np.float32(0), np.float32(0)
        for i in range(blocks.shape[1]):
            level = min(max(np.rint(blocks[n, i] * inverse), low), high)
            products += level * blocks[n, i] * importance[group, i]
            squares += level * level * importance[group, i]
        fitted[n] = products / squares if squares > 0 and products * scale > 0 else scale


@compiled(fastmath=True)
def round_blocks(
    blocks: Floats,
    scales: Floats,
    zeros: Floats,
    last: np.float32,
    codes: Codes,
    dequantised: Floats,
    worst: Floats,
    squared: Floats,
) -> None:
    """Blocks, their scales and zeros [n], the last code -> everything that follows, in place: the largest error and the
    sum of the squared errors are those of each block."""
    for n in range(blocks.shape[0]):
        scale, zero = scales[n], zeros[n]
        low, high = -zero, last - zero
        inverse = np.float32(1) / scale
        largest, total = np.int32(0), np.float32(0)
        for i in range(blocks.shape[1]):
            level = min(max(np.rint(blocks[n, i] * inverse), low), high)
            codes[n, i] = np.int32(level + zero)
            dequantised[n, i] = level * scale
            difference = level * scale - blocks[n, i]
            total += difference * difference
            largest = max(largest, np.float32(difference).view(np.int32) & MAGNITUDE)
        worst[n], squared[n] = np.int32(largest).view(np.float32), total


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
