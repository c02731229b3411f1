"""What a driver needs of a transport: a machine that runs programs and has files. It knows nothing of artifacts.

Implementations: local.py (no wire), ssh.py and windows/host.py (OpenSSH), adb/host.py (Android).

Commands are argument lists; an implementation that goes through a shell quotes them once, itself. An environment
variable or a folder for a command is set with `env`: ["env", "-C", FOLDER, "NAME=value", PROGRAM, ...].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from devices.transports.timeouts import Timeouts
from export.strict import build, parse_json
from runtimes.errors import TransportError

if TYPE_CHECKING:
    from devices.transports.files import Files

T = TypeVar("T")
LAST_LINES = 8
SILENT_SHELL = "if a start-up file of its shell prints something, make it silent for commands"
WRITE_BLOCK_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that ran to its end on the device, whatever its exit code."""

    command: Sequence[str]
    exit_code: int
    stdout: bytes
    stderr: bytes

    def checked(self, doing: str) -> bytes:
        """stdout, if the exit code is 0. Raises TransportError: what was being done, code and last lines."""
        if self.exit_code != 0:
            raise TransportError(
                f"{doing} failed on the device",
                command=self.command,
                exit_code=self.exit_code,
                last_lines=last_lines(self.stderr),
            )
        return self.stdout

    def number(self, doing: str) -> int:
        """The whole number that it printed. Raises TransportError where it printed something else."""
        text = self.checked(doing).strip()
        if not text.isdigit() or len(text) > 18:
            raise TransportError(
                f"{doing}: the device answered {text[:60]!r}, not a number; {SILENT_SHELL}", command=self.command
            )
        return int(text)

    def facts(self, kind: type[T], doing: str) -> T:
        """The JSON object that it printed, as the dataclass `kind`, strictly. Raises TransportError."""
        text = self.checked(doing)
        try:
            return build(kind, parse_json(text), doing, TransportError)
        except ValueError as error:
            raise TransportError(
                f"{doing}: the device answered {text[:60]!r} ({error}); {SILENT_SHELL}", command=self.command
            ) from error


class LineProcess(Protocol):
    """A running program on the device, line by line. Reading and writing may be done by different threads."""

    def write_line(self, line: bytes) -> None:
        """Send one line (without its end). May block while the pipe is full. Raises TransportError when it is gone."""
        ...

    def lines(self) -> Iterator[bytes]:
        """What it writes on stdout, line by line, without the ends; blocks; ends when the program or the wire does.
        Half a line at the end is dropped: a cut wire leaves one."""
        ...

    def close_stdin(self) -> None:
        """End the program's input. Safe to call twice."""
        ...

    def wait(self, deadline_s: float) -> int | None:
        """Its exit code, or None if it still runs after `deadline_s` seconds."""
        ...

    def last_lines(self) -> Sequence[str]:
        """The end of what it wrote on stderr so far."""
        ...

    def close(self) -> None:
        """End it, by force if need be, and free its pipes. Ends `lines` too. Safe to call twice."""
        ...


class Host(Protocol):
    """A machine with a device's files and programs. Every call raises TransportError, also when its deadline passes."""

    timeouts: Timeouts  # for callers too: how long a small command, a transfer or an installation may take

    @property
    def files(self) -> Files:
        """The device's file system."""
        ...

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """Run to its end. Raises if it could not be started or did not end in time; not for its exit code."""
        ...

    def start(self, command: Sequence[str]) -> LineProcess:
        """Start a program to talk with."""
        ...

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """Copy a file to `remote`, whose folder exists. If a shorter `remote` is there it is taken for the beginning of
        the same file and continued. The caller verifies it and renames it (devices.drivers.staging)."""
        ...

    def close(self) -> None:
        """Drop the connection. Safe to call twice."""
        ...


def write_from(remote: str, blocks: int) -> list[str]:
    """The command that writes its stdin into `remote` from that block on. It writes at offsets and does not append: two
    clients that push the same file at once then write the same bytes to the same places."""
    return ["dd", f"of={remote}", f"bs={WRITE_BLOCK_BYTES}", f"seek={blocks}", "conv=notrunc"]


def last_lines(stderr: bytes) -> list[str]:
    """The last lines that are not blank, for an error."""
    text = stderr.decode("utf-8", "replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
