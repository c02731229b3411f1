"""A machine with a POSIX shell behind the user's own OpenSSH client, as a Host (devices.transports.ssh_wire).

Commands are argument lists, quoted once, here, with shlex.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from devices.transports.host import WRITE_BLOCK_BYTES, Finished, LineProcess, write_from
from devices.transports.ssh_wire import SshWire
from runtimes.errors import TransportError

LOOK_S = 60.0
_SIZE = 'if [ -e "$1" ]; then stat -L -c %s "$1"; else echo 0; fi'


class SshHost:
    """See devices.transports.host.Host. It connects at the first call, and again when the connection was lost."""

    def __init__(self, host: str, *, port: int | None = None, config: Path | None = None) -> None:
        self.wire = SshWire(host, port=port, config=config)

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """See Host.run."""
        return self.wire.run(_quote(command), deadline_s=deadline_s, stdin=stdin, told=command)

    def start(self, command: Sequence[str]) -> LineProcess:
        """See Host.start. `exec`: the signal and the pipes of the session are the program's, not a shell's."""
        return self.wire.start(_quote(["exec", *command]))

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push."""
        there = self.run(["sh", "-c", _SIZE, "sh", remote], deadline_s=LOOK_S)
        blocks = int(there.checked(f"looking at {remote}")) // WRITE_BLOCK_BYTES
        line = _quote(write_from(remote, blocks))
        with local.open("rb") as source:
            os.lseek(source.fileno(), blocks * WRITE_BLOCK_BYTES, os.SEEK_SET)
            done = self.wire.run(line, deadline_s=deadline_s, stdin=source, told=["dd"])
        done.checked(f"writing {remote}")

    def pull(self, remote: str, local: Path, *, deadline_s: float) -> None:
        """See Host.pull."""
        content = self.run(["cat", "--", remote], deadline_s=deadline_s).checked(f"reading {remote}")
        part = local.with_name(local.name + ".part")
        part.write_bytes(content)
        part.replace(local)

    def close(self) -> None:
        """See Host.close."""
        self.wire.close()


def _quote(command: Sequence[str]) -> str:
    if any("\0" in argument for argument in command):
        raise TransportError(f"an argument holds a NUL, which no program can be given: {command!r:.80}")
    return shlex.join(command)
