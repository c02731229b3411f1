"""Fake int4 for scoring the tiny model: weights take the values that the simplest int4 artifact would have.

Not a packer: the tensors stay float. One group is 32 weights along the input dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

GROUP = 32
LOWEST, HIGHEST = -8, 7


def int4_values(weight: Tensor) -> Tensor:
    """Symmetric, scale = largest magnitude of the group / 7, rounded to the nearest step. Shape [rows, columns]."""
    groups = weight.reshape(-1, GROUP)
    scale = (groups.abs().amax(-1, keepdim=True) / HIGHEST).clamp_min(1e-8)
    return ((groups / scale).round().clamp(LOWEST, HIGHEST) * scale).reshape(weight.shape)


@contextmanager
def int4_weights(model: nn.Module) -> Iterator[None]:
    """Inside, every matrix (embedding and head too) holds int4 values; outside, its own again."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    wide = [matrix.detach().clone() for matrix in matrices]
    try:
        with torch.no_grad():
            for matrix in matrices:
                matrix.copy_(int4_values(matrix))
        yield
    finally:
        with torch.no_grad():
            for matrix, values in zip(matrices, wide, strict=True):
                matrix.copy_(values)
