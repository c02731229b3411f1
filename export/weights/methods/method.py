"""Methods: how a matrix's codes are found, once the input that it is multiplied with is known.

`data-free` looks at the weights alone. `weighted` counts each column's error by the mean square of its input. `gptq`
also corrects each column's error in the columns after it. The tables of embedding and tied head are always data-free:
they are one table, read in two ways. A matrix that the checkpoint has quantised already keeps its codes.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor

from export.checkpoint.quantised import QuantisedTensor
from export.scheme import Method, Precision
from export.weights.methods.blocks import LEVELS
from export.weights.methods.gptq import Feedback, Moments, feedback_of, quantise_rows_with_feedback
from export.weights.methods.quantize import Levels, QuantisedRows, importance_of, quantise_rows
from export.weights.scratch import Scratch
from export.weights.slots import BlockType


@dataclass(frozen=True)
class Quantiser:
    """Quantises rows of one matrix, a chunk at a time, in any thread."""

    precision: Precision
    levels: Levels
    scale_dtype: torch.dtype
    scratch: Scratch
    importance: Tensor | None = None
    feedback: Feedback | None = None

    def rows(self, weight: Tensor) -> QuantisedRows:
        """float32 [rows, columns] -> codes, scales and what they cost. Raises CheckpointError."""
        block_size = self.precision.block_size or weight.shape[1]
        if self.feedback is not None:
            return quantise_rows_with_feedback(
                weight,
                self.feedback,
                bits=self.precision.bits,
                block_size=block_size,
                scale_dtype=self.scale_dtype,
                scratch=self.scratch,
                levels=self.levels,
            )
        return quantise_rows(
            weight,
            bits=self.precision.bits,
            block_size=block_size,
            scale_dtype=self.scale_dtype,
            scratch=self.scratch,
            levels=self.levels,
            importance=self.importance,
        )


def levels_of(precision: Precision, block_type: BlockType | None = None) -> Levels:
    """What the kernels of a precision, or of ggml's type for it, allow."""
    if block_type is not None:
        return LEVELS[block_type]
    return Levels.POSITIVE if precision.symmetric else Levels.ASYMMETRIC


def make_quantiser(
    method: Method,
    precision: Precision,
    inputs: Tensor | None,
    *,
    scale_dtype: torch.dtype,
    block_type: BlockType | None = None,
    scratch: Scratch,
    pool: Executor,
) -> Quantiser:
    """`inputs` float32 [sequences, tokens, columns] of the calibration text; None or empty makes it data-free.

    8 bits lose so little that error feedback is not worth its time: `gptq` takes the weighted search for them.
    """
    levels = levels_of(precision, block_type)
    plain = Quantiser(precision, levels, scale_dtype, scratch)
    if method == "data-free" or inputs is None or inputs.numel() == 0:
        return plain
    flat = inputs.reshape(-1, inputs.shape[-1])
    if method == "gptq" and precision.bits == 4:
        moments = Moments(flat.shape[1])
        moments.add(flat, pool.map)
        feedback = feedback_of(moments)
        return Quantiser(precision, levels, scale_dtype, scratch, feedback.importance, feedback)
    return Quantiser(precision, levels, scale_dtype, scratch, importance_of(flat.square().mean(dim=0)))


def imported_rows(tensor: QuantisedTensor, start: int, stop: int) -> QuantisedRows:
    """Rows that the checkpoint has quantised, as they are: nothing is lost."""
    rows = tensor.code_rows(start, stop)
    nothing = torch.zeros(rows.scales.numel())
    return QuantisedRows(
        bits=4,
        codes=rows.codes,
        scales=rows.scales,
        dequantised=rows.dequantised(),
        relative_error=nothing,
        squared_error=nothing,
        zero_points=None if tensor.symmetric else rows.zeros,
    )
