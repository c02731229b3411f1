"""A quantised checkpoint in an artifact: the scheme that says how its matrices are stored, without a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from export.artifact import Format
from export.checkpoint.quantised import QuantisedTensor, refuse_scales
from export.errors import CheckpointError
from export.scheme import Precision, Scheme
from export.weights.slots import BLOCK_WEIGHTS

XNNPACK_GROUP = 32  # the smallest; larger ones are multiples of it


def imported_scheme(
    scheme: Scheme, tensors: Mapping[str, QuantisedTensor], *, format: Format, provider: str | None
) -> Scheme:
    """The scheme with each quantised matrix as the checkpoint has it. What the checkpoint has in float, such as the
    embedding, stays as the scheme says, data-free. Raises CheckpointError where codes or scales would change."""
    for name, tensor in tensors.items():
        refuse_inexact(name, tensor, format=format, provider=provider)
    group_size = next(iter(tensors.values())).group_size
    linear = Precision(bits=4, block_size=group_size, symmetric=all(tensor.symmetric for tensor in tensors.values()))
    overrides = {}
    for name, tensor in tensors.items():
        precision = replace(linear, symmetric=tensor.symmetric)
        if precision != replace(scheme, linear=linear).precision(name):
            overrides[name] = precision
    table = "-e8" if scheme.embedding_bits == 8 else ""
    return replace(
        scheme,
        name=f"{'int4' if linear.symmetric else 'uint4'}-b{group_size}{table}-imported",
        linear=linear,
        method="data-free",
        overrides=overrides,
        imported=True,
    )


def refuse_inexact(name: str, tensor: QuantisedTensor, *, format: Format, provider: str | None) -> None:
    """Raises CheckpointError where the format cannot store a matrix code for code."""
    if format == "executorch":
        reason = refuse_scales(tensor, torch.bfloat16, positive=True)
        if not tensor.symmetric:
            reason = "zero points"
        elif tensor.group_size % XNNPACK_GROUP:
            reason = f"groups of {tensor.group_size}, not of {XNNPACK_GROUP} or a multiple"
        if reason:
            raise CheckpointError(f"{name}: has {reason}, so it is repacked exactly only into ONNX; use --format onnx")
    elif format == "gguf":
        reason = refuse_scales(tensor, torch.float16, positive=False)
        if not tensor.symmetric:
            reason = "zero points"
        elif tensor.group_size % BLOCK_WEIGHTS:
            reason = f"groups of {tensor.group_size}, not of {BLOCK_WEIGHTS} or a multiple"
        if reason:
            raise CheckpointError(f"{name}: has {reason}, so ggml's block types cannot store it; use --format onnx")
    else:
        reason = refuse_scales(tensor, torch.float16 if provider else torch.float32, positive=False)
        if reason:
            raise CheckpointError(f"{name}: has {reason}, so it cannot be repacked for this target; use --target cpu")
