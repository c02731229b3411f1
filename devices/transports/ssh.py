"""A machine with a POSIX shell behind the user's own OpenSSH client, as a Host (devices.transports.ssh_wire).

Commands are argument lists, quoted once, here, with shlex.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from devices.transports.files import Files, PosixFiles
from devices.transports.host import WRITE_BLOCK_BYTES, Finished, LineProcess, write_from
from devices.transports.ssh_wire import SshWire
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from runtimes.errors import TransportError

_SIZE = 'if [ -e "$1" ]; then stat -L -c %s "$1"; else echo 0; fi'


class SshHost:
    """See devices.transports.host.Host. It connects at the first call, and again when the connection was lost."""

    def __init__(
        self, host: str, *, port: int | None = None, config: Path | None = None, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        self.timeouts = timeouts
        self.files: Files = PosixFiles(self)
        self.wire = SshWire(host, port=port, config=config, timeouts=timeouts)

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """See Host.run."""
        return self.wire.run(_quote(command), deadline_s=deadline_s, stdin=stdin, doing=command)

    def start(self, command: Sequence[str]) -> LineProcess:
        """See Host.start. With `exec`, signals and pipes of the session reach the program itself, not a shell."""
        return self.wire.start(_quote(["exec", *command]))

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push."""
        there = self.run(["sh", "-c", _SIZE, "sh", remote], deadline_s=self.timeouts.command_s)
        blocks = there.number(f"looking at {remote}") // WRITE_BLOCK_BYTES
        line = _quote(write_from(remote, blocks))
        with local.open("rb") as source:
            os.lseek(source.fileno(), blocks * WRITE_BLOCK_BYTES, os.SEEK_SET)
            done = self.wire.run(line, deadline_s=deadline_s, stdin=source, doing=["dd"])
        done.checked(f"writing {remote}")

    def close(self) -> None:
        """See Host.close."""
        self.wire.close()


def _quote(command: Sequence[str]) -> str:
    if any("\0" in argument for argument in command):
        raise TransportError(f"an argument contains a NUL, which no program can take: {command!r:.80}")
    return shlex.join(command)
