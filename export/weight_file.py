"""The files that take the streamed weights: every slot filled once, in pieces, and hashed on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from export.errors import SpaceError
from export.slots import Slot

READ_BYTES = 1 << 20


class WeightFile:
    """A sink for export.stream. Tensors may come in any order; the bytes of one come in order.

    A tensor usually fills the slot of its name. One whose rows are spread over several slots is in `spread`: its
    bytes go piece by piece to (slot, bytes), in that order.
    """

    def __init__(
        self, folder: Path, slots: Mapping[str, Slot], spread: Mapping[str, Sequence[tuple[str, int]]] | None = None
    ) -> None:
        self.folder, self.slots = folder, slots
        self.waiting = {name: [(name, slot.length)] for name, slot in slots.items()}
        self.waiting |= {name: list(pieces) for name, pieces in (spread or {}).items()}
        self.styles = {name: slots[pieces[0][0]] for name, pieces in self.waiting.items()}
        for pieces in self.waiting.values():
            pieces.reverse()  # so that the next one is popped from the end
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
