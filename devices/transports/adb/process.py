"""A program on the device behind `adb shell`, line by line; see LineProcess."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence

from devices.transports.child import ChildLines
from devices.transports.timeouts import Timeouts

# The device's process id and its start time come first: whoever ends the program must not end another of that number.
# `exec` makes the program's process the shell's own.
_ANNOUNCE = 'seen="$(cat /proc/$$/stat)"; set -- ${seen##*) }; echo $$ ${20}; exec '


class AdbProcess:
    """See LineProcess. The client is a child of this process, the program one of the device's `adbd`."""

    def __init__(self, adb: Sequence[str], quoted: str, kill: Callable[[int, str], None], timeouts: Timeouts) -> None:
        """`quoted` is the command line for the device's shell. `kill(pid, started)` ends a process on the device."""
        self._kill = kill
        self._timeouts = timeouts
        self._identity: tuple[int, str] | None = None
        self._closing = threading.Lock()
        self._child = ChildLines([*adb, "shell", _ANNOUNCE + quoted])

    def write_line(self, line: bytes) -> None:
        """See LineProcess.write_line."""
        self._child.write_line(line)

    def lines(self) -> Iterator[bytes]:
        """See LineProcess.lines."""
        for line in self._child.lines():
            if self._identity is None:
                pid, _, started = line.decode("ascii", "replace").strip().partition(" ")
                if re.fullmatch("[0-9]{1,9}", pid):
                    self._identity = int(pid), started
                    continue
            yield line

    def close_stdin(self) -> None:
        """See LineProcess.close_stdin."""
        self._child.close_stdin()

    def wait(self, deadline_s: float) -> int | None:
        """See LineProcess.wait."""
        return self._child.wait(deadline_s)

    def last_lines(self) -> Sequence[str]:
        """See LineProcess.last_lines."""
        return self._child.last_lines()

    def close(self) -> None:
        """See LineProcess.close."""
        with self._closing:
            self._child.close_stdin()
            if self._child.wait(self._timeouts.kill_s) is None and self._identity is not None:
                self._kill(*self._identity)  # adbd does not end a program whose client has gone
                self._child.wait(self._timeouts.kill_s)
            self._child.close()
