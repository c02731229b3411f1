"""A child process of this machine with deadlines: run to the end, or talked with line by line.

Transports are made of it: the programs `ssh` and `adb` are children too. The child gets a process group of its own, so
that what it starts (a proxy command, a shell's pipeline) ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from devices.transports.host import Finished, last_lines
from runtimes.errors import TransportError

_GROUP = {"start_new_session": True} if os.name == "posix" else {}
_END_S = 5.0  # for a killed process to be gone


def run_child(command: Sequence[str], *, deadline_s: float, stdin: bytes | IO[bytes] = b"") -> Finished:
    """Run to the end. Raises TransportError when it cannot be started, or is killed at its deadline."""
    if isinstance(stdin, bytes):
        process, text = _start(command, subprocess.PIPE, subprocess.PIPE), stdin
    else:
        process, text = _start(command, stdin, subprocess.PIPE), None
    try:
        stdout, stderr = process.communicate(text, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        raise TransportError(
            f"{command[0]} did not end within {deadline_s:.0f} s and was killed", command=command
        ) from None
    finally:
        _kill(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    return Finished(command=tuple(command), exit_code=process.returncode, stdout=stdout, stderr=stderr)


class ChildLines:
    """A LineProcess (devices.transports.host) that is a child of this one."""

    def __init__(self, command: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (closed by close)
        try:
            self._process = _start(command, subprocess.PIPE, self._log)
        except TransportError:
            self._log.close()
            raise
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._last_lines: list[str] | None = None

    def write_line(self, line: bytes) -> None:
        """See LineProcess.write_line."""
        try:
            self._stdin.write(line + b"\n")
            self._stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            raise TransportError("the program on the device takes no more input; it has ended") from error

    def lines(self) -> Iterator[bytes]:
        """See LineProcess.lines."""
        with self._stdout:  # closed by the thread that reads: under its hands, while it blocks, would not be safe
            for line in self._stdout:
                yield line.removesuffix(b"\n")

    def close_stdin(self) -> None:
        """See LineProcess.close_stdin."""
        with contextlib.suppress(OSError, ValueError):  # it is gone already, with a line unread
            self._stdin.close()

    def wait(self, deadline_s: float) -> int | None:
        """See LineProcess.wait."""
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return None

    def last_lines(self) -> Sequence[str]:
        """See LineProcess.last_lines."""
        if self._last_lines is not None:
            return self._last_lines
        size = os.fstat(self._log.fileno()).st_size
        return last_lines(_read_at(self._log.fileno(), 1 << 16, max(0, size - (1 << 16))))

    def close(self) -> None:
        """See LineProcess.close."""
        if self._last_lines is not None:
            return
        self._last_lines = list(self.last_lines())
        _kill(self._process)
        self.close_stdin()
        self._log.close()


def _start(command: Sequence[str], stdin: int | IO[bytes], stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            list(command), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, **_GROUP
        )
    except OSError as error:
        raise TransportError(f"{command[0]} cannot be started ({error.strerror}); is it installed?") from error
    except ValueError as error:  # a NUL
        raise TransportError(f"an argument of {command[0]} cannot be passed to a program ({error})") from error


def _read_at(file: int, count: int, offset: int) -> bytes:
    # The child writes through the same open file: its position must stay where the child left it.
    if sys.platform == "win32":  # which has no pread
        position = os.lseek(file, 0, os.SEEK_CUR)
        try:
            os.lseek(file, offset, os.SEEK_SET)
            return os.read(file, count)
        finally:
            os.lseek(file, position, os.SEEK_SET)
    return os.pread(file, count, offset)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it and its group, if it still runs, and collect it."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
