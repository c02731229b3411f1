"""What runtimes/ can raise.

RuntimesError               one line for the user, exit 2
├── RequestError            the request is wrong: too long for the context, two prompts at once, ...
│   ├── UnsupportedError    this runtime does not support a field
│   └── ContextFullError    the prompt leaves no room in the context
├── EngineError             the engine's library is missing, or cannot load the artifact
└── TransportError          the device or the wire failed (carries command, exit code and last lines)
    ├── ConnectionLostError the wire was cut: trying again may help
    ├── DiskFullError       the device's disk is full: trying again does not help
    └── DeviceBusyError     another process uses the device
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from runtimes.terminal import one_line


class RuntimesError(Exception):
    """The message says what was seen, what is allowed and what to do."""


class RequestError(RuntimesError):
    """The request cannot be served as it is."""


class UnsupportedError(RequestError):
    """This runtime does not support a field of the request."""


class ContextFullError(RequestError):
    """The prompt leaves no room for a new token in the context."""


class EngineError(RuntimesError):
    """The engine cannot be loaded or cannot load the artifact. `fix` is a command that fixes it, where there is one."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}; {fix}")
        self.seen = message
        self.fix = fix


class TransportError(RuntimesError):
    """The device or the wire failed. `message` is the text without `last_lines`; `exit_code` is None where there is
    none."""

    def __init__(
        self,
        message: str,
        *,
        command: Sequence[str] = (),
        exit_code: int | None = None,
        last_lines: Sequence[str] = (),
    ) -> None:
        # A message may quote a device, and a line of its log may contain anything; a terminal must not obey it.
        full = one_line(message) + ended(exit_code)
        super().__init__("\n  ".join([full, *(one_line(line) for line in last_lines)]))
        self.message = full
        self.command = tuple(command)
        self.exit_code = exit_code
        self.last_lines = tuple(last_lines)


class ConnectionLostError(TransportError):
    """The wire was cut, or was not there: trying again may help."""


class DiskFullError(TransportError):
    """The device's disk is full: trying again does not help."""


class DeviceBusyError(TransportError):
    """Another process uses the device."""


def ended(exit_code: int | None) -> str:
    """How a process ended, for a message: ` (exit code 1)`, ` (killed by SIGKILL (out of memory?))`."""
    if exit_code is None:
        return ""
    if exit_code < 0:
        name = next((known.name for known in signal.Signals if known == -exit_code), f"signal {-exit_code}")
        cause = " (out of memory?)" if name == "SIGKILL" else ""
        return f" (killed by {name}{cause})"
    return f" (exit code {exit_code})"
