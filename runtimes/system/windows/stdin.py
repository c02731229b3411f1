"""The agent's standard input on Windows, read without ever blocking in the system.

While one thread waits in a read of a pipe, Windows lets no other call touch that pipe; and a C runtime asks for the
type of the standard input when its library is loaded. An agent that reads in one thread and loads its engine in
another would wait until the next line comes in. So this class asks how many bytes there are, and reads only those.
"""

from __future__ import annotations

import ctypes
import io
import sys
import time
from typing import Any, BinaryIO

LOOK_S = 0.005
_BROKEN_PIPE = 109  # the other end is closed, and all was read


class PolledPipe(io.RawIOBase):
    """The reading end of a pipe, by its file descriptor."""

    def __init__(self, file: int) -> None:
        import msvcrt

        runtime: Any = msvcrt  # its names are not there for a type checker on another system
        self._file = io.FileIO(file, closefd=False)
        self._handle = ctypes.c_void_p(runtime.get_osfhandle(file))
        library: Any = ctypes
        self._kernel = library.WinDLL("kernel32", use_last_error=True)
        self._last_error = library.get_last_error

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """At least one byte, when there is one; 0 at the end."""
        while (count := self.waiting()) == 0:
            time.sleep(LOOK_S)
        if count is None:
            return 0
        data = self._file.read(min(count, len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def waiting(self) -> int | None:
        """How many bytes can be read at once; None at the end. Raises OSError if it is not a pipe."""
        count = ctypes.c_uint32()
        if self._kernel.PeekNamedPipe(self._handle, None, 0, None, ctypes.byref(count), None):
            return count.value
        if self._last_error() == _BROKEN_PIPE:
            return None
        raise OSError(f"the standard input is not a pipe (Windows error {self._last_error()})")


def binary_stdin() -> BinaryIO:
    """The standard input's bytes. A pipe on Windows is polled."""
    if sys.platform == "win32":
        pipe = PolledPipe(0)
        try:
            pipe.waiting()
        except OSError:
            return sys.stdin.buffer  # a console, or a file
        return io.BufferedReader(pipe)
    return sys.stdin.buffer
