"""Reading what a program prints without trusting it: every pipe is read to its end, and only so much of it is kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import IO

from runtimes.agent.wire import MAX_LINE_BYTES
from runtimes.errors import TransportError

MOST_OUTPUT_BYTES = 64 << 20  # of a command that runs to its end
TAIL_BYTES = 1 << 16  # of a log, for an error's last lines
_READ_BYTES = 1 << 16


class Drain:
    """Reads a pipe in a thread of its own, so that the program never waits for us, and closes it at its end."""

    def __init__(self, pipe: IO[bytes], most_bytes: int, on_overflow: Callable[[], None] | None = None) -> None:
        """Keeps the last `most_bytes`. With `on_overflow` it keeps the first ones, calls it when there are more, and
        stops reading."""
        self._pipe, self._most, self._on_overflow = pipe, most_bytes, on_overflow
        self._kept = bytearray()
        self._lock = threading.Lock()
        self.overflowed = False
        self._thread = threading.Thread(target=self._read, name="drain", daemon=True)
        self._thread.start()

    def wait(self, limit_s: float) -> bool:
        """Whether the pipe ended within `limit_s` seconds."""
        self._thread.join(max(0.0, limit_s))
        return not self._thread.is_alive()

    def kept(self) -> bytes:
        """What was kept so far."""
        with self._lock:
            return bytes(self._kept)

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._pipe:
            while data := self._pipe.read1(_READ_BYTES):  # type: ignore[attr-defined]
                with self._lock:
                    self._kept += data
                    self.overflowed = len(self._kept) > self._most and self._on_overflow is not None
                    if not self.overflowed:
                        del self._kept[: -self._most]
                if self.overflowed and self._on_overflow is not None:
                    self._on_overflow()
                    return


def read_lines(pipe: IO[bytes]) -> Iterator[bytes]:
    """The whole lines of a pipe, without their ends. Raises TransportError for one longer than MAX_LINE_BYTES."""
    while line := pipe.readline(MAX_LINE_BYTES + 1):
        if line.endswith(b"\n"):
            yield line[:-1]
        elif len(line) > MAX_LINE_BYTES:
            raise TransportError(
                f"the program on the device printed a line of more than {MAX_LINE_BYTES} bytes, which begins with "
                f"{line[:60]!r}"
            )
