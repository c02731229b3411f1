"""Slots: the places that tensors take in an artifact's weight files, known before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from export.errors import OptionError
from export.scheme import Precision

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int8": torch.int8,
}
# What a slot holds of its tensor. `weight` is the tensor itself, in float; `blocks` are codes and scales in one.
Kind = Literal["weight", "codes", "scales", "zero_points", "blocks"]
SUFFIXES: Mapping[Kind, str] = {
    "weight": "",
    "codes": "_q",
    "scales": "_scales",
    "zero_points": "_zero_points",
    "blocks": "_blocks",
}
# ggml's names for blocks of 32 weights: 4 bits with a scale, 4 bits with a scale and a minimum, 8 bits with a scale.
BlockType = Literal["Q4_0", "Q4_1", "Q8_0"]
BLOCK_WEIGHTS = 32
BLOCK_BYTES: Mapping[BlockType, int] = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


def block_type(precision: Precision) -> BlockType:
    """The type that stores a precision with blocks of 32, or of a multiple whose scale is then repeated."""
    if precision.bits == 8:
        return "Q8_0"
    return "Q4_0" if precision.symmetric else "Q4_1"


@dataclass(frozen=True)
class SlotId:
    """What a slot is for: a kind of data of a tensor, or of a part of its rows.

    As text it is the name of an initializer in an ONNX graph, and part of a key in an ExecuTorch program; it is never
    read back from text.
    """

    tensor: str
    kind: Kind = "weight"
    part: str = ""

    def __str__(self) -> str:
        part = f"#{self.part}" if self.part else ""
        return f"{self.tensor}{part}{SUFFIXES[self.kind]}"


@dataclass(frozen=True)
class Slot:
    """One tensor's bytes: [offset, offset + length) of `file`."""

    id: SlotId
    dtype: str
    shape: tuple[int, ...]
    offset: int
    file: str
    bits: int | None = None  # of a code; two 4-bit codes lie in a byte
    even_high: bool = False  # of two 4-bit codes in a byte, the even column's is in the high half
    rounded: str | None = None  # a narrower type that the values are rounded to first
    block_type: BlockType | None = None  # of `blocks`; `shape` is then in bytes

    @property
    def length(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def end(self) -> int:
        return self.offset + self.length


Slots = Mapping[SlotId, Slot]
# A tensor whose rows lie in several slots -> the slots that its bytes go to, each with how many bytes, in order, over
# and over again until the slots are full.
Interleaved = Mapping[SlotId, Sequence[tuple[SlotId, int]]]


def lay_out(
    tensors: Iterable[tuple[SlotId, str, tuple[int, ...]]],
    *,
    file: str,
    alignment: int,
    max_file_bytes: int | None = None,
) -> dict[SlotId, Slot]:
    """(id, dtype, shape) one after another, each start aligned. -> slots by id, in file order.

    With `max_file_bytes` a file that would grow beyond it ends, and `file`.1, `file`.2, ... take what follows. Raises
    OptionError where one tensor alone is larger.
    """
    slots: dict[SlotId, Slot] = {}
    current, number, offset = file, 0, 0
    for id, dtype, shape in tensors:
        slot = Slot(id, dtype, shape, offset, current)
        if max_file_bytes is not None and slot.end > max_file_bytes:
            if slot.length > max_file_bytes:
                limit, size = max_file_bytes / 1e6, slot.length / 1e6
                raise OptionError(f"--max-file-size {limit:.1f} MB: {id} alone has {size:.1f} MB; allow that much")
            number += 1
            current = f"{file}.{number}"
            slot = Slot(id, dtype, shape, 0, current)
        slots[id] = slot
        offset = -(-slot.end // alignment) * alignment
    return slots


def weight_files(slots: Slots) -> list[str]:
    """The files that slots lie in, in order."""
    return list(dict.fromkeys(slot.file for slot in slots.values()))
