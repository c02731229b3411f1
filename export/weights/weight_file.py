"""The files that take the streamed weights: every slot filled once, in pieces, and hashed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from export.errors import SpaceError
from export.weights.slots import Interleaved, Slot, SlotId, Slots

READ_BYTES = 1 << 20


class WeightFile:
    """A sink for export.weights.stream. Tensors may come in any order; the bytes of one come in order.

    A tensor usually fills the slot of its id. One whose rows lie in several slots is in `interleaved`.
    """

    def __init__(self, folder: Path, slots: Slots, interleaved: Interleaved | None = None) -> None:
        self.folder, self.slots = folder, slots
        places = {id: [(id, slot.length)] for id, slot in slots.items()} | dict(interleaved or {})
        self.styles = {id: slots[pieces[0][0]] for id, pieces in places.items()}
        self.waiting = {id: cycle(pieces) for id, pieces in places.items()}
        self.begun: dict[SlotId, tuple[SlotId, int]] = {}  # the slot that a tensor's next bytes go to, and how many
        self.filled = dict.fromkeys(slots, 0)
        self.hashes = {id: hashlib.sha256() for id in slots}
        self.done: dict[SlotId, str] = {}  # slot -> SHA-256, once it is full

    def __enter__(self) -> WeightFile:
        paths = {slot.file: self.folder / slot.file for slot in self.slots.values()}
        self.files = {name: path.open("r+b" if path.exists() else "w+b", buffering=0) for name, path in paths.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self.files.values():
            file.close()

    def slot(self, id: SlotId) -> Slot | None:
        """A tensor's slot (any of them), which says how its bytes are written; None if the file has no such tensor."""
        return self.styles.get(id)

    def append(self, id: SlotId, data: memoryview) -> None:
        """The next bytes of a tensor. Raises SpaceError where the disk is full."""
        pieces, parts = self.waiting[id], dict[SlotId, list[memoryview]]()
        while data:
            slot, room = self.begun.pop(id) if id in self.begun else next(pieces)
            parts.setdefault(slot, []).append(data[:room])
            if room > len(data):
                self.begun[id] = (slot, room - len(data))
            data = data[room:]
        for slot, some in parts.items():
            self._write(self.slots[slot], some[0] if len(some) == 1 else memoryview(b"".join(some)))

    def _write(self, slot: Slot, data: memoryview) -> None:
        at = slot.offset + self.filled[slot.id]
        self.filled[slot.id] += len(data)
        self.hashes[slot.id].update(data)
        try:
            while data:
                written = write_at(self.files[slot.file], data, at)
                data, at = data[written:], at + written
        except OSError as error:
            raise SpaceError(
                f"{self.folder / slot.file}: cannot be written ({error.strerror}); free some space"
            ) from error
        if self.filled[slot.id] == slot.length:
            self.done[slot.id] = self.hashes.pop(slot.id).hexdigest()

    def restore(self, slots: Mapping[SlotId, str]) -> None:
        """These slots hold what they should already, from an earlier run."""
        for id, digest in slots.items():
            self.filled[id] = self.slots[id].length
            self.done[id] = digest
            del self.hashes[id]

    def stored_sha256(self, id: SlotId) -> str:
        """SHA-256 of what a slot holds on disk now."""
        slot, hashed = self.slots[id], hashlib.sha256()
        file, at = self.files[slot.file], slot.offset
        file.seek(at)
        while at < slot.end and (data := file.read(min(READ_BYTES, slot.end - at))):
            hashed.update(data)
            at += len(data)
        return hashed.hexdigest()

    def digests(self) -> dict[SlotId, str]:
        """SHA-256 of every slot's bytes. Every slot must be full by now."""
        assert not self.hashes, f"not full: {', '.join(map(str, self.hashes))}"
        return self.done


def write_at(file: BinaryIO, data: memoryview, at: int) -> int:
    """Write as much as the system takes at once; -> how many bytes. Windows has no os.pwrite."""
    file.seek(at)
    return file.write(data)
