"""GPTQ: each column's rounding error is corrected in the columns that are quantised after it.

Scales and zero points are found first, on the original weights (static groups), by quantize.py. Then the
columns are rounded one after another, the most important first, and what a column lost is subtracted from the remaining
ones as the inputs' second moments say. Frantar et al., "GPTQ", 2022 (arXiv:2210.17323).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.errors import NumbersError
from export.weights.methods.compiled import compiled
from export.weights.methods.loops import MAGNITUDE, Codes, Floats
from export.weights.methods.quantize import Levels, QuantisedRows, find_scales, importance_of
from export.weights.scratch import Scratch

# Part of the mean of the diagonal that is added to it; ten times as much each time that the matrix is not positive
# definite in float32.
DAMPING = 0.01
# Columns that are quantised before the remaining ones are corrected, all at once, by a matrix product.
BLOCK_COLUMNS = 128
# Rows that are quantised side by side.
LANES = 16
STRIP = 512  # columns of a triangular matrix that are made at a time


class Moments:
    """The sum of x x^T over the calibration tokens, float32 [columns, columns], of which only the upper triangle is
    right: half the work. 268 MB for 8192 columns."""

    def __init__(self, columns: int) -> None:
        self.sum = torch.zeros(columns, columns)
        self.tokens = 0

    def add(self, x: Tensor, each: Callable[..., Iterable[object]] = map) -> None:
        """The inputs of a linear layer, float32 [..., columns].

        `each` may be the map of a pool: a strip is made by one worker alone, so that the bits do not depend on how many
        there are.
        """
        flat = x.reshape(-1, x.shape[-1])

        @torch.inference_mode()
        def strip(start: int) -> None:
            self.sum[start : start + STRIP, start:].addmm_(flat[:, start : start + STRIP].T, flat[:, start:])

        for _ in each(strip, range(0, len(self.sum), STRIP)):
            pass
        self.tokens += len(flat)

    def mean_squares(self) -> Tensor:
        """Of each column, float32 [columns]; 0 without tokens."""
        return self.sum.diagonal() / max(self.tokens, 1)


@dataclass(frozen=True)
class Feedback:
    """`order` int64 [columns]: the columns in the order in which they are quantised. `upper` float32 [columns,
    columns], in that order, upper triangular with ones on the diagonal: row j says what part of column j's error is
    subtracted from the later columns. `importance` float32 [columns], in the matrix's own order. `damping` is what was
    used."""

    order: Tensor
    upper: Tensor
    importance: Tensor
    damping: float


def feedback_of(moments: Moments) -> Feedback:
    """What the rows of one matrix need. The memory of `moments` is used up: the peak is three times its size, measured.

    With H = R R^T, R upper triangular, the upper Cholesky factor of the inverse of H is R's inverse: one factorisation
    and one triangular inverse, without H's inverse itself. A column without inputs has nothing but its damping, so it
    is rounded to nearest and corrects nothing. Raises NumbersError.
    """
    diagonal = moments.mean_squares()
    mean = float(diagonal.mean())
    if not math.isfinite(mean):
        raise NumbersError("what the model computes on the calibration text is not finite; is the checkpoint whole?")
    total, moments.sum = moments.sum, torch.empty(0)
    mirror_upper(total)
    total /= max(moments.tokens, 1)
    # A stable sort: columns that are equally important keep their order in every run.
    ascending = torch.argsort(diagonal, stable=True)
    matrix = total[ascending[:, None], ascending[None, :]]
    failed = torch.empty((), dtype=torch.int32)
    damping, added = DAMPING, 0.0
    while True:
        # float32 keeps a damping that is small beside the mean; an all-zero matrix becomes the identity.
        matrix.diagonal().add_((damping - added) * mean if mean > 0 else 1.0)
        torch.linalg.cholesky_ex(matrix, out=(total, failed))
        if not failed:
            break
        damping, added = damping * 10, damping
    unit_inverse_flipped(total, matrix)
    return Feedback(ascending.flip(0), matrix, importance_of(diagonal), damping)


def mirror_upper(matrix: Tensor) -> None:
    """Make a matrix symmetric in place, by its upper triangle."""
    for start in range(0, len(matrix), STRIP):
        stop = start + STRIP
        square = matrix[start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T


def unit_inverse_flipped(lower: Tensor, out: Tensor) -> None:
    """The inverse of a lower triangular matrix, each row divided by its diagonal element, both axes reversed: so upper
    triangular with ones on the diagonal. `out` may hold anything."""
    size = len(lower)
    out.zero_()
    for start in range(0, size, STRIP):
        stop = min(start + STRIP, size)
        unit = torch.zeros(size - start, stop - start)
        unit.diagonal().fill_(1)
        part = torch.linalg.solve_triangular(lower[start:, start:], unit, upper=False)
        part *= lower.diagonal()[start:, None]  # the inverse's diagonal is 1 / the diagonal
        out[: size - start, size - stop : size - start] = part.flip(0, 1)


def quantise_rows_with_feedback(
    weight: Tensor,
    feedback: Feedback,
    *,
    bits: int,
    block_size: int,
    scale_dtype: torch.dtype,
    scratch: Scratch,
    levels: Levels = Levels.POSITIVE,
) -> QuantisedRows:
    """As `quantise_rows`, with error feedback. Rows do not depend on one another: any chunks give the same bytes.

    Costs columns / 2 multiplications a weight. Codes and dequantised weights lie in `scratch`.
    """
    blocks = weight.view(-1, block_size)
    found = find_scales(blocks, bits=bits, scale_dtype=scale_dtype, levels=levels, importance=feedback.importance)
    rows, columns = weight.shape
    scales, zeros = (values.view(rows, -1).numpy() for values in (found.scales, found.zeros))
    codes = scratch.take("codes", (rows, columns), torch.uint8)
    remaining = torch.index_select(
        weight, 1, feedback.order, out=scratch.take("remaining", (rows, columns), torch.float32)
    )
    group = (feedback.order // block_size).numpy()
    for first in range(0, columns, BLOCK_COLUMNS):
        stop = min(first + BLOCK_COLUMNS, columns)
        errors = scratch.take("errors", (rows, stop - first), torch.float32)
        quantise_columns(
            remaining.numpy(), first, stop, feedback.upper.numpy(), feedback.order.numpy(), group, scales, zeros,
            found.last, errors.numpy(), codes.numpy(),
        )  # fmt: skip
        if stop < columns:
            remaining[:, stop:].addmm_(errors, feedback.upper[first:stop, stop:], alpha=-1)
    dequantised = scratch.take("dequantised", (rows, columns), torch.float32)
    worst, squared = torch.empty(len(blocks)), torch.empty(len(blocks))
    dequantise_blocks(
        blocks.numpy(), codes.view(-1, block_size).numpy(), found.scales.numpy(), found.zeros.numpy(),
        dequantised.view(-1, block_size).numpy(), worst.numpy(), squared.numpy(),
    )  # fmt: skip
    return found.rows(codes, dequantised, worst, squared)


@compiled(fastmath={"contract", "nsz", "nnan"})
def quantise_columns(
    remaining: Floats,
    first: int,
    stop: int,
    upper: Floats,
    order: NDArray[np.int64],
    group: NDArray[np.int64],
    scales: Floats,
    zeros: Floats,
    last: np.float32,
    errors: Floats,
    codes: Codes,
) -> None:
    """Columns first to stop of `remaining` [rows, columns] -> errors [rows, stop - first], codes at their own place.

    `remaining`, `upper` and `group` are in the order of importance; `scales` and `zeros` [rows, groups] and `codes`
    are in the matrix's own. `remaining` is overwritten. LANES rows take turns, so that none waits for its own last
    correction: one row after another takes three times as long.
    """
    for row in range(0, remaining.shape[0], LANES):
        end = min(row + LANES, remaining.shape[0])
        for j in range(first, stop):
            own = group[j]
            for r in range(row, end):
                scale, zero, weight = scales[r, own], zeros[r, own], remaining[r, j]
                level = min(max(np.rint(weight / scale), -zero), last - zero)
                codes[r, order[j]] = np.int32(level + zero)
                errors[r, j - first] = weight - level * scale
            parts = upper[j, j + 1 : stop]
            for r in range(row, end):
                # Slices, whose indices are seen to be positive: without them the loop is not vectorised.
                later, error = remaining[r, j + 1 : stop], errors[r, j - first]
                for k in range(parts.shape[0]):
                    later[k] -= parts[k] * error


@compiled(fastmath=True)
def dequantise_blocks(
    blocks: Floats,
    codes: Codes,
    scales: Floats,
    zeros: Floats,
    dequantised: Floats,
    worst: Floats,
    squared: Floats,
) -> None:
    """Weights and codes [n, block], scales and zeros [n] -> everything that follows, in place."""
    for n in range(blocks.shape[0]):
        largest, total = np.int32(0), np.float32(0)
        for i in range(blocks.shape[1]):
            dequantised[n, i] = (np.float32(codes[n, i]) - zeros[n]) * scales[n]
        for i in range(blocks.shape[1]):
            difference = dequantised[n, i] - blocks[n, i]
            total += difference * difference
            largest = max(largest, np.float32(difference).view(np.int32) & MAGNITUDE)
        worst[n], squared[n] = np.int32(largest).view(np.float32), total
