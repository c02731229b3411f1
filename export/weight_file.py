"""The file that takes the streamed weights: every slot filled once, in pieces, and hashed on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from export.errors import SpaceError
from export.slots import Slot


class WeightFile:
    """A sink for export.stream. Tensors may come in any order; the bytes of one come in order.

    A tensor usually fills the slot of its name. One whose rows are spread over several slots is in `spread`: its
    bytes go piece by piece to (slot, bytes), in that order.
    """

    def __init__(
        self, path: Path, slots: Mapping[str, Slot], spread: Mapping[str, Sequence[tuple[str, int]]] | None = None
    ) -> None:
        self.path, self.slots = path, slots
        self.waiting = {name: [(name, slot.length)] for name, slot in slots.items()}
        self.waiting |= {name: list(pieces) for name, pieces in (spread or {}).items()}
        self.styles = {name: slots[pieces[0][0]] for name, pieces in self.waiting.items()}
        for pieces in self.waiting.values():
            pieces.reverse()  # so that the next one is popped from the end
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
        """A tensor's slot (any of them), which says how its bytes are written; None if the file has no such tensor."""
        return self.styles.get(name)

    def append(self, name: str, data: memoryview) -> None:
        """The next bytes of a tensor. Raises SpaceError where the disk is full."""
        pieces = self.waiting[name]
        while data:
            slot, room = pieces.pop()
            self._write(self.slots[slot], data[:room])
            if room > len(data):
                pieces.append((slot, room - len(data)))
            data = data[room:]

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
