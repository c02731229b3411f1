"""The agent's two pipes: lines of limited length come in, whole lines go out. Their meaning is in wire.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from runtimes.agent.wire import MAX_LINE_BYTES, Code, encode
from runtimes.terminal import one_line

TOO_LONG = f"the line is longer than {MAX_LINE_BYTES} bytes; it was skipped"
CLOSE_S = 1.0
_STDOUT, _STDERR = 1, 2


class LineReader:
    """Iterates over lines without their ends; gives None for a line that was too long. Text after the last line end
    is dropped."""

    def __init__(self, source: BinaryIO, limit_bytes: int = MAX_LINE_BYTES) -> None:
        self._source = source
        self._limit_bytes = limit_bytes

    def __iter__(self) -> Iterator[bytes | None]:
        while line := self._source.readline(self._limit_bytes + 1):
            if line.endswith(b"\n"):
                yield line[:-1]
            elif len(line) > self._limit_bytes:
                while line and not line.endswith(b"\n"):
                    line = self._source.readline(self._limit_bytes)
                if line:
                    yield None


class LineWriter:
    """Writes messages as whole lines, from any thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._closed = False
        self.count = 0  # writes that ended

    @classmethod
    def over_stdout(cls) -> LineWriter:
        """Keep stdout for the protocol: what an engine's library prints there goes to stderr from now on."""
        out = os.fdopen(os.dup(_STDOUT), "wb")
        os.dup2(_STDERR, _STDOUT)
        return cls(out)

    def write(self, *messages: Mapping[str, Any]) -> None:
        """Write one line for each message. Ends the process when the other end of the pipe is closed."""
        lines = b"".join(encode(message) + b"\n" for message in messages)
        with self._lock:
            if self._closed:
                return
            try:
                self._out.write(lines)
                self._out.flush()
            except OSError:
                os._exit(0)
            self.count += 1

    def error(self, number: int | None, code: Code, message: str, *, fatal: bool = False) -> None:
        """Write an error line; the message is put on one line, and half characters of a path are replaced."""
        text = one_line(message)
        self.write({"event": "error", "request": number, "code": code, "message": text, "fatal": fatal})

    def close(self) -> None:
        """Write nothing more. A write that waits for a host which does not read is not waited for."""
        self._closed = True
        if self._lock.acquire(timeout=CLOSE_S):
            self._lock.release()
