"""Slots: the places that tensors take in an artifact's weight file, known before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ITEM_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "uint8": 8, "int8": 8}


@dataclass(frozen=True)
class Slot:
    """One tensor's bytes: [offset, offset + length) of the weight file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    even_high: bool = False  # of two 4-bit codes in a byte, the even column's is in the high half
    rounded: str | None = None  # a narrower type that the values are rounded to first

    @property
    def length(self) -> int:
        return math.prod(self.shape) * ITEM_BITS[self.dtype] // 8

    @property
    def end(self) -> int:
        return self.offset + self.length


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]], *, alignment: int) -> dict[str, Slot]:
    """(name, dtype, shape) one after another, each start aligned. -> slots by name, in file order."""
    slots: dict[str, Slot] = {}
    offset = 0
    for name, dtype, shape in tensors:
        slots[name] = Slot(name, dtype, shape, offset)
        offset = -(-slots[name].end // alignment) * alignment
    return slots
