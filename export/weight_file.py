"""The file that takes the streamed weights: every slot filled once, in pieces, and hashed on the way."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from export.errors import SpaceError
from export.slots import Slot

PART = re.compile(r"#\d+")  # `gate_up_proj.weight#1_q` is the second place of `gate_up_proj.weight_q`


class WeightFile:
    """A sink for export.stream. Tensors may come in any order; the bytes of one come in order.

    A tensor's bytes may lie in several slots, filled one after the other.
    """

    def __init__(self, path: Path, slots: Mapping[str, Slot]) -> None:
        self.path, self.slots = path, slots
        self.places: dict[str, list[Slot]] = {}
        for slot in slots.values():
            self.places.setdefault(PART.sub("", slot.name), []).append(slot)
        for places in self.places.values():
            places.sort(key=lambda slot: slot.name)
        self.filled = dict.fromkeys(slots, 0)
        self.hashes = {name: hashlib.sha256() for name in slots}

    def __enter__(self) -> WeightFile:
        self.file = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def slot(self, name: str) -> Slot | None:
        """The (first) slot of a tensor, which says how its bytes are written; None if the file has no such tensor."""
        return self.places[name][0] if name in self.places else None

    def append(self, name: str, data: memoryview) -> None:
        """The next bytes of a tensor. Raises SpaceError where the disk is full."""
        for slot in self.places[name]:
            room = slot.length - self.filled[slot.name]
            self._write(slot, data[:room])
            data = data[room:]
        assert not data, f"{name}: more bytes than its slots hold"

    def _write(self, slot: Slot, data: memoryview) -> None:
        at = slot.offset + self.filled[slot.name]
        self.filled[slot.name] += len(data)
        self.hashes[slot.name].update(data)
        try:
            while data:
                written = os.pwrite(self.file.fileno(), data, at)
                data, at = data[written:], at + written
        except OSError as error:
            raise SpaceError(f"{self.path}: cannot be written ({error.strerror}); free some space, start again") from error

    def digests(self) -> dict[str, str]:
        """SHA-256 of every slot's bytes. Every slot must be full by now."""
        for name, slot in self.slots.items():
            assert self.filled[name] == slot.length, f"{name}: {self.filled[name]} of {slot.length} bytes"
        return {name: hashed.hexdigest() for name, hashed in self.hashes.items()}
