"""How the programs that quantise checkpoints store a linear layer of 4 bits: which tensors, and the order of the codes.

Eight codes lie in an int32, the first in its lowest bits. Along which axis they are packed, in which order, and what is
added to a zero point differ. Sources: qlinear_cuda_old.py of AutoGPTQ (its v1 subtracts 1 from each zero point before
packing) and GPTQModel (v2 does not), awq/modules/linear/gemm.py of AutoAWQ, pack_quantized.py of compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from export.checkpoint.shards import Piece
from export.errors import CheckpointError

PER_INT32 = 8
MIDDLE = 8  # the code of zero in a symmetric matrix
# AWQ's int32 holds these of eight neighbouring outputs, lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Parts = Mapping[str, Piece]  # a linear layer's tensors, by the last part of their names
Shapes = Mapping[str, tuple[int, ...]]


class Packing(Protocol):
    """One way to store a linear layer [rows, columns] whose rows are its outputs. A layer has all of `shapes`, and may
    have some of `optional`. The others give rows start..stop."""

    @property
    def codes_name(self) -> str: ...

    def shapes(self, rows: int, columns: int, group_size: int) -> Shapes: ...

    def optional(self, rows: int, columns: int, group_size: int) -> Shapes: ...

    def codes(self, parts: Parts, start: int, stop: int) -> Tensor:
        """uint8 [rows, columns]."""
        ...

    def scales(self, parts: Parts, start: int, stop: int) -> Tensor:
        """[rows, groups], in the type that they are stored in."""
        ...

    def zeros(self, parts: Parts, start: int, stop: int) -> Tensor | None:
        """uint8 [rows, groups], the code of zero; None where the layer has none, so that it is 8."""
        ...


@dataclass(frozen=True)
class Gptq:
    """qweight packed along the input, qzeros along the output. `zero_offset` was subtracted from zero points."""

    zero_offset: int
    codes_name: str = "qweight"

    def shapes(self, rows: int, columns: int, group_size: int) -> Shapes:
        groups = columns // group_size
        return {
            "qweight": (columns // PER_INT32, rows),
            "qzeros": (groups, rows // PER_INT32),
            "scales": (groups, rows),
        }

    def optional(self, rows: int, columns: int, group_size: int) -> Shapes:
        return {"g_idx": (columns,)}

    def codes(self, parts: Parts, start: int, stop: int) -> Tensor:
        codes = unpack(parts["qweight"].read_columns(start, stop))  # [columns / 8, rows, 8]
        return codes.permute(1, 0, 2).reshape(stop - start, -1)

    def scales(self, parts: Parts, start: int, stop: int) -> Tensor:
        return parts["scales"].read_columns(start, stop).T.contiguous()

    def zeros(self, parts: Parts, start: int, stop: int) -> Tensor:
        stored = packed_columns(parts["qzeros"], start, stop, tuple(range(PER_INT32)))
        if self.zero_offset and bool((stored == 15).any()):
            # Programs read this as 0 or as 16, which 4 bits do not hold.
            raise CheckpointError(
                f"{parts['qzeros'].name}: has a zero point of 16, which does not fit in 4 bits; save the checkpoint in "
                "the format gptq_v2"
            )
        return stored + self.zero_offset


@dataclass(frozen=True)
class Awq:
    """Both packed along the output, in AWQ's order."""

    codes_name: str = "qweight"

    def shapes(self, rows: int, columns: int, group_size: int) -> Shapes:
        groups = columns // group_size
        return {
            "qweight": (columns, rows // PER_INT32),
            "qzeros": (groups, rows // PER_INT32),
            "scales": (groups, rows),
        }

    def optional(self, rows: int, columns: int, group_size: int) -> Shapes:
        return {}

    def codes(self, parts: Parts, start: int, stop: int) -> Tensor:
        return packed_columns(parts["qweight"], start, stop, AWQ_ORDER)

    def scales(self, parts: Parts, start: int, stop: int) -> Tensor:
        return parts["scales"].read_columns(start, stop).T.contiguous()

    def zeros(self, parts: Parts, start: int, stop: int) -> Tensor:
        return packed_columns(parts["qzeros"], start, stop, AWQ_ORDER)


@dataclass(frozen=True)
class PackQuantized:
    """compressed-tensors' pack-quantized: weight_packed along the input, zero points along the output; both are stored
    with 8 added, so that codes from -8 to 7 need no sign."""

    codes_name: str = "weight_packed"

    def shapes(self, rows: int, columns: int, group_size: int) -> Shapes:
        return {
            "weight_packed": (rows, columns // PER_INT32),
            "weight_scale": (rows, columns // group_size),
            "weight_shape": (2,),
        }

    def optional(self, rows: int, columns: int, group_size: int) -> Shapes:
        return {"weight_zero_point": (-(-rows // PER_INT32), columns // group_size), "weight_g_idx": (columns,)}

    def codes(self, parts: Parts, start: int, stop: int) -> Tensor:
        return unpack(parts["weight_packed"].read_rows(start, stop)).reshape(stop - start, -1)

    def scales(self, parts: Parts, start: int, stop: int) -> Tensor:
        return parts["weight_scale"].read_rows(start, stop)

    def zeros(self, parts: Parts, start: int, stop: int) -> Tensor | None:
        if "weight_zero_point" not in parts:
            return None
        first = start // PER_INT32
        packed = parts["weight_zero_point"].read_rows(first, -(-stop // PER_INT32))
        whole = unpack(packed).permute(0, 2, 1).reshape(-1, packed.shape[1])
        return whole[start - first * PER_INT32 : stop - first * PER_INT32].contiguous()


def unpack(packed: Tensor) -> Tensor:
    """int32 [...] -> uint8 [..., 8], the lowest bits first."""
    octets = packed.contiguous().view(torch.uint8).view(*packed.shape, PER_INT32 // 2)  # little endian
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(-2)


def packed_columns(piece: Piece, start: int, stop: int, order: tuple[int, ...]) -> Tensor:
    """int32 [n, rows / 8] whose int32 holds eight neighbouring rows' codes in `order` -> uint8 [stop - start, n]."""
    first = start // PER_INT32
    codes = unpack(piece.read_columns(first, -(-stop // PER_INT32)))  # [n, some, 8]
    places = [order.index(row) for row in range(PER_INT32)]
    whole = codes[:, :, places].flatten(1).T
    return whole[start - first * PER_INT32 : stop - first * PER_INT32].contiguous()
