"""A program on the device behind `adb shell`, line by line; see LineProcess."""

from __future__ import annotations

import collections
import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence

from devices.transports.host import LAST_LINES
from runtimes.errors import TransportError

END_S = 2.0  # for a program to end when its input has
# The device's process id and its start time come first: whoever ends the program must not end another of that number.
# `exec` makes the program's process the shell's own.
_ANNOUNCE = 'seen="$(cat /proc/$$/stat)"; set -- ${seen##*) }; echo $$ ${20}; exec '


class AdbProcess:
    """See LineProcess. `kill(pid, started)` ends a process on the device."""

    def __init__(
        self, adb: Sequence[str], command: Sequence[str], quoted: str, kill: Callable[[int, str], None]
    ) -> None:
        self._command = tuple(command)
        self._kill = kill
        self._identity: tuple[int, str] | None = None
        self._closing = threading.Lock()
        self._last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        try:
            self._process = subprocess.Popen(
                [*adb, "shell", _ANNOUNCE + quoted],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise TransportError(f"adb cannot be run ({error.strerror})", command=command) from error
        self._log = threading.Thread(target=self._read_log, name="adb-log", daemon=True)
        self._log.start()

    def write_line(self, line: bytes) -> None:
        """See LineProcess.write_line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise TransportError("the program on the device no longer reads", command=self._command) from error

    def lines(self) -> Iterator[bytes]:
        """See LineProcess.lines."""
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError), self._process.stdout as stdout:  # ValueError: closed in the meantime
            for line in stdout:
                if self._identity is None:
                    pid, _, started = line.decode("ascii", "replace").strip().partition(" ")
                    if pid.isdigit():
                        self._identity = int(pid), started
                        continue
                if line.endswith(b"\n"):  # half a line is what a cut wire leaves
                    yield line[:-1]

    def close_stdin(self) -> None:
        """See LineProcess.close_stdin."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def wait(self, deadline_s: float) -> int | None:
        """See LineProcess.wait."""
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return None

    def last_lines(self) -> Sequence[str]:
        """See LineProcess.last_lines."""
        if self._process.poll() is not None:
            self._log.join(END_S)  # all that was written has come
        return list(self._last)

    def close(self) -> None:
        """See LineProcess.close."""
        with self._closing:
            self.close_stdin()
            if self.wait(END_S) is None:
                # adbd does not end a program whose client has gone.
                if self._identity is not None:
                    self._kill(*self._identity)
                if self.wait(END_S) is None:
                    self._process.kill()
                    self._process.wait()
            self._log.join(END_S)
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as log:
            for line in log:
                if text := line.decode("utf-8", "replace").rstrip():
                    self._last.append(text)
