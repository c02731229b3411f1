"""A child process of this machine with deadlines: run to the end, or talked with line by line.

Every transport is built on it: the programs `ssh` and `adb` are children too. The child gets a process group of its
own, so that what it starts (a proxy command, a shell's pipeline) ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from devices.transports.host import Finished, last_lines
from runtimes.errors import TransportError

_GROUP = {"start_new_session": True} if os.name == "posix" else {}
_LOG_BYTES = 1 << 16  # of the end of a child's stderr, for an error's last lines
_GONE_S = 5.0  # for a killed child to be collected


def run_child(
    command: Sequence[str], *, deadline_s: float, stdin: bytes | IO[bytes] = b"", doing: Sequence[str] | None = None
) -> Finished:
    """Run to the end. `doing` is what the command does on the device, for errors; None is the command itself.

    Raises TransportError when it cannot be started, or is killed at its deadline.
    """
    doing = command if doing is None else doing
    if isinstance(stdin, bytes):
        process, text = _start(command, subprocess.PIPE, subprocess.PIPE), stdin
    else:
        process, text = _start(command, stdin, subprocess.PIPE), None
    try:
        stdout, stderr = process.communicate(text, timeout=deadline_s)
    except subprocess.TimeoutExpired as late:
        raise TransportError(
            f"`{shlex.join(doing):.200}` did not finish in {deadline_s:g} s and was killed",
            command=doing,
            last_lines=last_lines(late.stderr or b""),
        ) from None
    finally:
        _kill(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    return Finished(command=tuple(doing), exit_code=process.returncode, stdout=stdout, stderr=stderr)


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
            raise TransportError("the program on the device has ended, and cannot read more input") from error

    def lines(self) -> Iterator[bytes]:
        """See LineProcess.lines."""
        # The reading thread closes the pipe: no other thread may do that while this one blocks in a read.
        with self._stdout:
            for line in self._stdout:
                if line.endswith(b"\n"):
                    yield line[:-1]

    def close_stdin(self) -> None:
        """See LineProcess.close_stdin."""
        with contextlib.suppress(OSError, ValueError):  # the program is gone already, with a line unread
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
        return last_lines(_read_at(self._log.fileno(), _LOG_BYTES, max(0, size - _LOG_BYTES)))

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
        process.wait(_GONE_S)
