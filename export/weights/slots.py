"""Slots: the places that tensors take in an artifact's weight file, known before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from export.errors import OptionError

ITEM_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "uint8": 8, "int8": 8}


@dataclass(frozen=True)
class Slot:
    """One tensor's bytes: [offset, offset + length) of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    file: str
    even_high: bool = False  # of two 4-bit codes in a byte, the even column's is in the high half
    rounded: str | None = None  # a narrower type that the values are rounded to first

    @property
    def length(self) -> int:
        return math.prod(self.shape) * ITEM_BITS[self.dtype] // 8

    @property
    def end(self) -> int:
        return self.offset + self.length


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    *,
    file: str,
    alignment: int,
    max_file_bytes: int | None = None,
) -> dict[str, Slot]:
    """(name, dtype, shape) one after another, each start aligned. -> slots by name, in file order.

    With `max_file_bytes` a file that would grow beyond it ends, and `file`.1, `file`.2, ... take what follows. Raises
    OptionError where one tensor alone is larger.
    """
    slots: dict[str, Slot] = {}
    current, number, offset = file, 0, 0
    for name, dtype, shape in tensors:
        slot = Slot(name, dtype, shape, offset, current)
        if max_file_bytes is not None and slot.end > max_file_bytes:
            if slot.length > max_file_bytes:
                limit, size = max_file_bytes / 1e6, slot.length / 1e6
                raise OptionError(f"--max-file-size {limit:.1f} MB: {name} alone has {size:.1f} MB; allow that much")
            number += 1
            current = f"{file}.{number}"
            slot = Slot(name, dtype, shape, 0, current)
        slots[name] = slot
        offset = -(-slot.end // alignment) * alignment
    return slots


def weight_files(slots: Mapping[str, Slot]) -> list[str]:
    """The files that slots lie in, in order."""
    return list(dict.fromkeys(slot.file for slot in slots.values()))
