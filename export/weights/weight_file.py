"""The files that take the streamed weights: every slot filled once, in pieces, and hashed on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import TracebackType

from export.errors import SpaceError
from export.weights.slots import Slot

READ_BYTES = 1 << 20


class WeightFile:
    """A sink for export.weights.stream. Tensors may come in any order; the bytes of one come in order.

    A tensor usually fills the slot of its name. One whose rows are spread over several slots is in `spread`: its
    bytes go piece by piece to (slot, bytes), in that order, over and over again until the slots are full.
    """

    def __init__(
        self, folder: Path, slots: Mapping[str, Slot], spread: Mapping[str, Sequence[tuple[str, int]]] | None = None
    ) -> None:
        self.folder, self.slots = folder, slots
        places = {name: [(name, slot.length)] for name, slot in slots.items()} | dict(spread or {})
        self.styles = {name: slots[pieces[0][0]] for name, pieces in places.items()}
        self.waiting = {name: cycle(pieces) for name, pieces in places.items()}
        self.begun: dict[str, tuple[str, int]] = {}  # tensor -> the slot that its next bytes go to, and how many
        self.filled = dict.fromkeys(slots, 0)
        self.hashes = {name: hashlib.sha256() for name in slots}
        self.done: dict[str, str] = {}  # slot -> SHA-256, once it is full

    def __enter__(self) -> WeightFile:
        paths = {slot.file: self.folder / slot.file for slot in self.slots.values()}
        self.files = {name: path.open("r+b" if path.exists() else "w+b", buffering=0) for name, path in paths.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self.files.values():
            file.close()

    def slot(self, name: str) -> Slot | None:
        """A tensor's slot (any of them), which says how its bytes are written; None if the file has no such tensor."""
        return self.styles.get(name)

    def append(self, name: str, data: memoryview) -> None:
        """The next bytes of a tensor. Raises SpaceError where the disk is full."""
        pieces, parts = self.waiting[name], dict[str, list[memoryview]]()
        while data:
            slot, room = self.begun.pop(name) if name in self.begun else next(pieces)
            parts.setdefault(slot, []).append(data[:room])
            if room > len(data):
                self.begun[name] = (slot, room - len(data))
            data = data[room:]
        for slot, some in parts.items():
            self._write(self.slots[slot], some[0] if len(some) == 1 else memoryview(b"".join(some)))

    def _write(self, slot: Slot, data: memoryview) -> None:
        at = slot.offset + self.filled[slot.name]
        self.filled[slot.name] += len(data)
        self.hashes[slot.name].update(data)
        try:
            while data:
                written = os.pwrite(self.files[slot.file].fileno(), data, at)
                data, at = data[written:], at + written
        except OSError as error:
            raise SpaceError(
                f"{self.folder / slot.file}: cannot be written ({error.strerror}); free some space, start again"
            ) from error
        if self.filled[slot.name] == slot.length:
            self.done[slot.name] = self.hashes.pop(slot.name).hexdigest()

    def restore(self, slots: Mapping[str, str]) -> None:
        """These slots hold what they should already, from an earlier run."""
        for name, digest in slots.items():
            self.filled[name] = self.slots[name].length
            self.done[name] = digest
            del self.hashes[name]

    def stored_sha256(self, name: str) -> str | None:
        """SHA-256 of what a slot holds on disk now; None for a slot this file does not have."""
        if name not in self.slots:
            return None
        slot, hashed, at = self.slots[name], hashlib.sha256(), self.slots[name].offset
        while at < slot.end and (data := os.pread(self.files[slot.file].fileno(), min(READ_BYTES, slot.end - at), at)):
            hashed.update(data)
            at += len(data)
        return hashed.hexdigest()

    def digests(self) -> dict[str, str]:
        """SHA-256 of every slot's bytes. Every slot must be full by now."""
        assert not self.hashes, f"not full: {', '.join(self.hashes)}"
        return self.done
