"""The agent's ends of its two pipes: lines of bounded length in, whole lines out. It knows no order and no event."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from runtimes.agent.wire import MAX_LINE_BYTES, Code, encode

MALFORMED_TAIL = f"the line is longer than {MAX_LINE_BYTES} bytes; it was skipped"
_STDOUT, _STDERR = 1, 2


class LineReader:
    """Lines without their ends; None for one that was too long. What follows the last line end is dropped."""

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


class Voice:
    """What the agent says: whole lines, from any thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._silent = False

    @classmethod
    def over_stdout(cls) -> Voice:
        """Keep stdout for the protocol: what an engine's library prints there goes to stderr from now on."""
        out = os.fdopen(os.dup(_STDOUT), "wb")
        os.dup2(_STDERR, _STDOUT)
        return cls(out)

    def say(self, *messages: Mapping[str, Any]) -> None:
        """Write one line each."""
        lines = b"".join(encode(message) + b"\n" for message in messages)
        with self._lock:
            if self._silent:
                return
            try:
                self._out.write(lines)
                self._out.flush()
            except OSError:
                os._exit(0)  # nobody listens any more

    def error(self, request: int | None, code: Code, message: str, *, fatal: bool = False) -> None:
        """Write an error line; its message is made one line."""
        told = " ".join(message.split())
        self.say({"event": "error", "request": request, "code": code, "message": told, "fatal": fatal})

    def fall_silent(self) -> None:
        """Write nothing more."""
        with self._lock:
            self._silent = True
