"""A quantised checkpoint in an artifact: the scheme that says how its matrices are stored, without a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from export.artifact import Format
from export.checkpoint.quantised import QuantisedTensor, refuse_scales
from export.errors import NumbersError
from export.scheme import Precision, Scheme
from export.weights.slots import BLOCK_WEIGHTS

XNNPACK_GROUP = 32  # the smallest; larger ones are multiples of it


@dataclass(frozen=True)
class Blocks:
    """What a format's symmetric blocks can hold."""

    size: int  # of a block, in weights; a group may be several
    scales: torch.dtype
    positive: bool  # whether the scales must be
    without: str  # what follows where they cannot hold a matrix


_BLOCKS: Mapping[Format, Blocks] = {
    "executorch": Blocks(XNNPACK_GROUP, torch.bfloat16, True, "it is repacked exactly only into ONNX"),
    "gguf": Blocks(BLOCK_WEIGHTS, torch.float16, False, "ggml's block types cannot store it"),
}


def imported_scheme(
    scheme: Scheme, tensors: Mapping[str, QuantisedTensor], *, format: Format, provider: str | None
) -> Scheme:
    """The scheme with each quantised matrix as the checkpoint has it. What the checkpoint has in float, such as the
    embedding, stays as the scheme says, data-free. Raises NumbersError where codes or scales would change."""
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


def imported_notes(scheme: Scheme, asked: str | None) -> list[str]:
    """What a scheme that the user asked for does to a checkpoint that is quantised already."""
    if not scheme.imported or asked is None:
        return []
    return [f"--scheme {asked} is for what the checkpoint has in float; its quantised layers keep their codes"]


def refuse_inexact(name: str, tensor: QuantisedTensor, *, format: Format, provider: str | None) -> None:
    """Raises NumbersError where the format cannot store a matrix code for code."""
    if format == "onnx":
        reason = refuse_scales(tensor, torch.float16 if provider else torch.float32, positive=False)
        if reason:
            raise NumbersError(f"{name}: has {reason}, so it cannot be repacked for this target; use --target cpu")
        return
    blocks = _BLOCKS[format]
    reason = refuse_scales(tensor, blocks.scales, positive=blocks.positive)
    if not tensor.symmetric:
        reason = "zero points"
    elif tensor.group_size % blocks.size:
        reason = f"groups of {tensor.group_size}, not of {blocks.size} or a multiple"
    if reason:
        raise NumbersError(f"{name}: has {reason}, so {blocks.without}; use --format onnx")
