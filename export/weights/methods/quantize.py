"""Block quantisation: a scale, and where asked a zero point, for each block of weights along the input.

The scale is chosen among a few candidates by the block's squared error, after rounding it to the type in which it is
stored, so that what is measured is what the engine will multiply with. With calibration the error of each column is
weighted by its importance, the mean square of the input that the column is multiplied with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from export.errors import NumbersError
from export.weights.methods.loops import Floats, block_ranges, fit_scales, round_blocks, search_scales
from export.weights.scratch import Scratch
from export.weights.slots import Slot

# Divisors of a block's largest magnitude that are tried without calibration, by bits. For 4 bits, 7 represents it
# exactly on both sides, 8 on the negative side, 7.5 splits the difference. On normal weights in blocks of 32 the best
# of the three has 17% less squared error than 7 alone, and 11% less than 8 alone.
DIVISORS = {4: (7.0, 7.5, 8.0), 8: (127.0,)}
# With calibration a search is worth more: what clips an unimportant column may gain much on the others.
FINE_DIVISORS = {4: tuple(6.5 + 0.5 * step for step in range(13)), 8: (127.0, 128.0)}
# Factors by which the range of an asymmetric block is made smaller, which clips its extremes.
SHRINKS = {4: (1.0, 0.95, 0.9, 0.85, 0.8), 8: (1.0,)}
FINE_SHRINKS = {4: tuple(1.0 - 0.05 * step for step in range(9)), 8: (1.0, 0.98)}
# Beside them a block with a zero point may take the symmetric one, with these divisors: a tenth less error.
FINE_CENTRED_DIVISORS = {4: (7.0, 7.5, 8.0, 8.5, 9.0), 8: (127.0, 128.0)}
# Importance of a column that is hardly ever used, as part of the mean: without it a block of such columns has no error.
IMPORTANCE_FLOOR = 0.01
# Of a scale whose products with zero points must be in float16, which has 11 significant bits: a zero point has 4.
PRODUCT_BITS, MOST_ZERO_POINT = 7, 15


class Levels(Enum):
    """What a kernel allows: scales above 0; of both signs, so that -8 can represent either extreme; or a zero point;
    or one that is stored as its product with the scale, in the scale's own type."""

    POSITIVE = "positive"
    SIGNED = "signed"
    ASYMMETRIC = "asymmetric"
    MINIMUM = "minimum"

    @property
    def has_zero_points(self) -> bool:
        return self in (Levels.ASYMMETRIC, Levels.MINIMUM)


@dataclass(frozen=True)
class QuantisedRows:
    """`codes` uint8 [rows, columns]; `scales` [rows, columns / block] in the stored type; `zero_points` uint8, of the
    same shape, the code of zero, or None where it is 2 ** (bits - 1) everywhere; `dequantised` float32 [rows, columns],
    as the engine sees the weights; per block, float32: `relative_error` is the largest |w - dequantised w| over the
    block's largest |w|, `squared_error` the sum of their squares."""

    bits: int
    codes: Tensor
    scales: Tensor
    dequantised: Tensor
    relative_error: Tensor
    squared_error: Tensor
    zero_points: Tensor | None = None

    def pack(self, slot: Slot) -> Tensor:
        """The codes as their slot wants them: two 4-bit codes to a byte, 8-bit codes from 0 or around 0."""
        if self.bits == 8:
            # A copy: the codes lie in scratch, which the next chunk of this thread overwrites.
            return self.codes ^ 0x80 if slot.dtype == "int8" else self.codes.clone()
        pairs = self.codes.view(torch.int16)  # little endian: the even column's code is in the low byte
        return (pairs << 4 | pairs >> 8 if slot.even_high else pairs | pairs >> 4).to(torch.uint8)

    def pack_zero_points(self) -> Tensor:
        """uint8 [rows, ceil(blocks * bits / 8)] as onnxruntime wants them: the even block's in the low half."""
        assert self.zero_points is not None
        if self.bits == 8:
            return self.zero_points
        padded = torch.nn.functional.pad(self.zero_points, (0, self.zero_points.shape[1] % 2))
        return padded[:, 0::2] | padded[:, 1::2] << 4


def importance_of(mean_squares: Tensor) -> Tensor:
    """The mean square of each input column, float32 [columns] -> the columns' weights in the search, mean about 1."""
    mean = mean_squares.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return mean_squares / mean + IMPORTANCE_FLOOR


def quantise_rows(
    weight: Tensor,
    *,
    bits: int,
    block_size: int,
    scale_dtype: torch.dtype,
    scratch: Scratch,
    levels: Levels = Levels.POSITIVE,
    importance: Tensor | None = None,
) -> QuantisedRows:
    """float32 [rows, columns], finite -> codes, scales and what they cost. The columns must divide into blocks.

    `importance`, float32 [columns], is what `importance_of` gives; without it all columns count the same, and fewer
    candidates are tried. Compiled code in one thread: 500 million weights a second without importance. Codes and
    dequantised weights lie in `scratch`, until the same thread quantises again.
    Raises NumbersError where a scale is beyond the range of its type.
    """
    blocks = weight.view(-1, block_size)
    found = find_scales(blocks, bits=bits, scale_dtype=scale_dtype, levels=levels, importance=importance)
    codes = scratch.take("codes", tuple(weight.shape), torch.uint8)
    dequantised = scratch.take("dequantised", tuple(weight.shape), torch.float32)
    worst, squared = torch.empty(len(blocks)), torch.empty(len(blocks))
    round_blocks(
        blocks.numpy(), found.scales.numpy(), found.zeros.numpy(), found.last,
        codes.view(-1, block_size).numpy(), dequantised.view(-1, block_size).numpy(), worst.numpy(), squared.numpy(),
    )  # fmt: skip
    return found.rows(codes, dequantised, worst, squared)


@dataclass(frozen=True)
class BlockScales:
    """Of every block, float32 [n]: the scale, as `dtype` holds it, in which it is stored; the code of zero; the largest
    magnitude of a weight, 1 where all are 0."""

    bits: int
    levels: Levels
    dtype: torch.dtype
    scales: Tensor
    zeros: Tensor
    largest: Tensor

    @property
    def last(self) -> np.float32:
        """The greatest code."""
        return np.float32(2**self.bits - 1)

    def rows(self, codes: Tensor, dequantised: Tensor, worst: Tensor, squared: Tensor) -> QuantisedRows:
        """With codes and dequantised weights [rows, columns], and each block's largest error and its sum of squared
        errors [n]."""
        zero_points = self.zeros.to(torch.uint8).view(len(codes), -1) if self.levels.has_zero_points else None
        return QuantisedRows(
            bits=self.bits,
            codes=codes,
            scales=self.scales.to(self.dtype).view(len(codes), -1),
            dequantised=dequantised,
            relative_error=worst / self.largest,
            squared_error=squared,
            zero_points=zero_points,
        )


def find_scales(
    blocks: Tensor, *, bits: int, scale_dtype: torch.dtype, levels: Levels, importance: Tensor | None
) -> BlockScales:
    """float32 [n, block] -> their scales; see `quantise_rows`."""
    low, high = torch.empty(len(blocks)), torch.empty(len(blocks))
    block_ranges(blocks.view(torch.int32).numpy(), low.view(torch.int32).numpy(), high.view(torch.int32).numpy())
    largest = torch.maximum(high, -low)
    # A block of zeros gets the scale 1 / divisor: engines refuse 0.
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    fine = importance is not None
    divisors = DIVISORS if not fine else FINE_CENTRED_DIVISORS if levels.has_zero_points else FINE_DIVISORS
    scales = symmetric_candidates(largest, divisors[bits], levels, scale_dtype)
    zeros = torch.full((1, 1), 2.0 ** (bits - 1))
    if levels.has_zero_points:
        scales, zeros = with_zero_points(low, high, bits, fine, levels, scale_dtype, scales, zeros)
    scales, zeros = best_scales(blocks, scales, zeros, bits, importance)
    if importance is not None:
        fitted = fitted_scales(blocks, scales, zeros, bits, importance)
        fitted = storable(fitted, levels, scale_dtype).copysign(fitted)
        scales, zeros = best_scales(blocks, torch.stack([scales, fitted]), zeros.expand(2, -1), bits, importance)
    return BlockScales(bits, levels, scale_dtype, scales, zeros, largest)


def storable(scales: Tensor, levels: Levels, dtype: torch.dtype) -> Tensor:
    """Magnitudes of scales, rounded to the type that they are stored in; what would be 0 gets the least positive value.

    Where products with a zero point are stored, too, they keep the digits for which every product is in the type.
    Raises NumbersError where one is beyond the type's range: the weights are not usable in that type.
    """
    # Of float16 the subnormal numbers count, whose reciprocal is finite in float32.
    least = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    rounded = scales.abs().to(dtype).float().clamp_(min=least)
    if levels is Levels.MINIMUM:
        significand, exponent = torch.frexp(rounded)
        rounded = torch.ldexp((significand * 2**PRODUCT_BITS).round_() / 2**PRODUCT_BITS, exponent)
    largest = rounded * MOST_ZERO_POINT if levels is Levels.MINIMUM else rounded
    if dtype == torch.float16 and bool(largest.half().isinf().any()):
        raise NumbersError(
            f"a block's scale is {float(scales.abs().max()):.3g}, and this target stores it in float16, which ends at "
            "65504; export for cpu as ONNX"
        )
    return rounded


def symmetric_candidates(largest: Tensor, divisors: tuple[float, ...], levels: Levels, dtype: torch.dtype) -> Tensor:
    """Largest magnitudes [n] -> candidate scales [c, n], whose code of zero is in the middle."""
    positive = storable(torch.stack([largest / divisor for divisor in divisors]), levels, dtype)
    return positive if levels is Levels.POSITIVE else torch.cat([positive, -positive])


def with_zero_points(
    low: Tensor,
    high: Tensor,
    bits: int,
    fine: bool,
    levels: Levels,
    dtype: torch.dtype,
    scales: Tensor,
    zeros: Tensor,
) -> tuple[Tensor, Tensor]:
    """Blocks' least and greatest weights [n], symmetric candidates -> all candidates: scales and zeros [c, n]."""
    last = 2.0**bits - 1
    low, high = low.clamp(max=0), high.clamp(min=0)
    span = torch.where(high > low, high - low, torch.ones_like(low))
    shrinks = torch.tensor((FINE_SHRINKS if fine else SHRINKS)[bits])[:, None]
    steps = storable(span * shrinks / last, levels, dtype)
    # Both ends move towards their middle by the same amount.
    points = ((-low * shrinks) / steps).round_().clamp_(0, last)
    return torch.cat([steps, scales]), torch.cat([points, zeros.expand(len(scales), len(low))])


def best_scales(
    blocks: Tensor, scales: Tensor, zeros: Tensor, bits: int, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weights [n, block], candidate scales [c, n] and zeros [c, n] or [1, 1] -> of every block [n] the best candidate's
    scale and zero."""
    best_scale, best_zero = torch.empty(len(blocks)), torch.empty(len(blocks))
    search_scales(
        blocks.numpy(), scales.numpy(), zeros.contiguous().numpy(), np.float32(2**bits - 1),
        None if importance is None else by_block(importance, blocks), best_scale.numpy(), best_zero.numpy(),
    )  # fmt: skip
    return best_scale, best_zero


def fitted_scales(blocks: Tensor, scales: Tensor, zeros: Tensor, bits: int, importance: Tensor) -> Tensor:
    """Weights [n, block], their scales and zeros [n] -> the scales that fit their codes best [n]."""
    fitted = torch.empty(len(blocks))
    fit_scales(
        blocks.numpy(), scales.numpy(), zeros.numpy(), np.float32(2**bits - 1), by_block(importance, blocks),
        fitted.numpy(),
    )  # fmt: skip
    return fitted


def by_block(importance: Tensor, blocks: Tensor) -> Floats:
    """Of columns [columns] -> [blocks in a row, block], as the loops take it."""
    return importance.contiguous().view(-1, blocks.shape[1]).numpy()
