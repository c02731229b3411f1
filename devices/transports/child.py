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
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from devices.transports.host import Finished, last_lines
from devices.transports.pipes import MOST_OUTPUT_BYTES, TAIL_BYTES, Drain, read_lines
from runtimes.errors import TransportError

_GROUP = {"start_new_session": True} if os.name == "posix" else {}
_LOG_S = 1.0  # for the last lines of a child that has ended
_GONE_S = 5.0  # for a killed child to be collected


def run_child(
    command: Sequence[str], *, deadline_s: float, stdin: bytes | IO[bytes] = b"", doing: Sequence[str] | None = None
) -> Finished:
    """Run to the end. `doing` is what the command does on the device, for errors; None is the command itself.

    Raises TransportError when it cannot be started, or is killed at its deadline.
    """
    doing = command if doing is None else doing
    until_s = time.monotonic() + deadline_s
    process = _start(command, subprocess.PIPE if isinstance(stdin, bytes) else stdin)
    assert process.stdout is not None and process.stderr is not None
    out = Drain(process.stdout, MOST_OUTPUT_BYTES, on_overflow=lambda: _kill(process))
    err = Drain(process.stderr, TAIL_BYTES)
    if process.stdin is not None:
        assert isinstance(stdin, bytes)
        threading.Thread(target=_feed, args=(process.stdin, stdin), name="feed", daemon=True).start()
    try:
        ended = all(pipe.wait(until_s - time.monotonic()) for pipe in (out, err))
        code = _wait(process, until_s - time.monotonic()) if ended else None
    finally:
        _kill(process)
    if out.overflowed:
        raise TransportError(
            f"`{shlex.join(doing):.200}` printed more than {MOST_OUTPUT_BYTES} bytes and was killed", command=doing
        )
    if code is None:
        raise TransportError(
            f"`{shlex.join(doing):.200}` did not finish in {deadline_s:g} s and was killed",
            command=doing,
            last_lines=last_lines(err.kept()),
        )
    return Finished(command=tuple(doing), exit_code=code, stdout=out.kept(), stderr=err.kept())


class ChildLines:
    """A LineProcess (devices.transports.host) that is a child of this one."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = _start(command, subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._log = Drain(self._process.stderr, TAIL_BYTES)
        self._closed = False

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
            yield from read_lines(self._stdout)

    def close_stdin(self) -> None:
        """See LineProcess.close_stdin."""
        with contextlib.suppress(OSError, ValueError):  # the program is gone already, with a line unread
            self._stdin.close()

    def wait(self, deadline_s: float) -> int | None:
        """See LineProcess.wait."""
        return _wait(self._process, deadline_s)

    def last_lines(self) -> Sequence[str]:
        """See LineProcess.last_lines."""
        if self._process.poll() is not None:
            self._log.wait(_LOG_S)  # the end of a log is in the pipe for a moment longer than its writer lives
        return last_lines(self._log.kept())

    def close(self) -> None:
        """See LineProcess.close."""
        if self._closed:
            return
        self._closed = True
        _kill(self._process)
        self.close_stdin()


def _start(command: Sequence[str], stdin: int | IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            list(command), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **_GROUP
        )
    except OSError as error:
        raise TransportError(f"{command[0]} cannot be started ({error.strerror}); is it installed?") from error
    except ValueError as error:  # a NUL
        raise TransportError(f"an argument of {command[0]} cannot be passed to a program ({error})") from error


def _feed(pipe: IO[bytes], data: bytes) -> None:
    # A program may end without reading its input; its exit code says what that means.
    with contextlib.suppress(OSError), pipe:
        pipe.write(data)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    try:
        return process.wait(max(0.0, limit_s))
    except subprocess.TimeoutExpired:
        return None


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
