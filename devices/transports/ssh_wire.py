"""The user's own OpenSSH client as a wire: ~/.ssh/config, keys, agents and jump hosts apply.

It asks for no password (BatchMode) and stores none. Every call goes over one connection (ControlMaster) and has a
deadline. ssh.py and windows/host.py decide how a command line is quoted for the shell at the other end.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from devices.transports.child import ChildLines, run_child
from devices.transports.host import Finished, LineProcess, last_lines
from devices.transports.timeouts import Timeouts
from runtimes.errors import ConnectionLostError, TransportError

IDLE_S = 60  # how long an unused connection is kept, also after this process has died
SSH_FAILED = 255  # ssh's own exit code, and of a remote program that a signal ended
ENDED_BY_SIGNAL = (
    "the connection is there: a signal ended the program (out of memory, or an unknown instruction?); "
    "`phi-edge doctor DEVICE` looks for it"
)
_OPTIONS = {
    "BatchMode": "yes",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "ERROR",
}


class SshWire:
    """It connects at the first call, and again when the connection was lost."""

    def __init__(
        self, host: str, *, port: int | None, config: Path | None, timeouts: Timeouts, greeting: str = "true"
    ) -> None:
        """`greeting` is the command line that is run once to make the connection; it exits with 0."""
        if host.startswith("-"):
            raise TransportError(f"{host!r} is an option of ssh, not a host; give a name of ~/.ssh/config")
        self.name = host
        self.greeted = b""  # what the greeting wrote
        self._greeting = greeting
        self._timeouts = timeouts
        # A socket's path has about 100 characters: a short folder of our own, which only we may read.
        self._folder = Path(tempfile.mkdtemp(prefix="phi-ssh-"))
        self.control = self._folder / "c"
        self._arguments = ["ssh", "-T", *(["-F", str(config)] if config else []), *(["-p", str(port)] if port else [])]
        self._arguments += ["-o", f"ControlPath={self.control}"]
        # ssh takes whole seconds. A cut cable is noticed after three intervals.
        limits = {"ConnectTimeout": timeouts.connect_s, "ServerAliveInterval": timeouts.alive_s}
        for name, value in (_OPTIONS | {name: str(math.ceil(limit_s)) for name, limit_s in limits.items()}).items():
            self._arguments += ["-o", f"{name}={value}"]

    def run(self, line: str, *, deadline_s: float, stdin: bytes | IO[bytes], doing: Sequence[str]) -> Finished:
        """Run a command line to its end. `doing` is what it does, for errors."""
        self.connect()
        done = run_child(self._command(line), deadline_s=deadline_s, stdin=stdin, doing=doing)
        # ssh's own failure, or a remote program that a signal ended; ours never exit with 255.
        if done.exit_code == SSH_FAILED and not self.is_connected():
            raise ConnectionLostError(
                f"the connection to {self.name} was lost",
                command=doing,
                exit_code=SSH_FAILED,
                last_lines=last_lines(done.stderr),
            )
        return done

    def start(self, line: str) -> LineProcess:
        """Start a command line to talk with."""
        self.connect()
        return _SshLines(self._command(line), self)

    def connect(self) -> None:
        """Start the connection that all calls share, unless it is there."""
        if self.is_connected():
            return
        self.control.unlink(missing_ok=True)  # of a master that was killed
        self._folder.mkdir(exist_ok=True)
        # The master exits by itself when nothing uses it any more, also if this process is killed.
        keep = ["-o", "ControlMaster=yes", "-o", f"ControlPersist={IDLE_S}"]
        master = [*self._arguments, *keep, "--", self.name, self._greeting]
        # A proxy command or a jump host may need longer than ConnectTimeout.
        done = run_child(master, deadline_s=3 * self._timeouts.connect_s)
        if done.exit_code != 0:
            raise ConnectionLostError(
                f"{self.name} cannot be reached by ssh; try `ssh {self.name} {self._greeting}`, and `phi-edge doctor`",
                command=master,
                exit_code=done.exit_code,
                last_lines=last_lines(done.stderr),
            )
        self.greeted = done.stdout

    def is_connected(self) -> bool:
        """Whether the connection that all calls share is there."""
        check = [*self._arguments, "-O", "check", "--", self.name]
        return self.control.exists() and run_child(check, deadline_s=self._timeouts.connect_s).exit_code == 0

    def close(self) -> None:
        """Drop the connection. Safe to call twice."""
        if self.control.exists():
            with contextlib.suppress(TransportError):
                run_child([*self._arguments, "-O", "exit", "--", self.name], deadline_s=self._timeouts.connect_s)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self, line: str) -> list[str]:
        return [*self._arguments, "-o", "ControlMaster=no", "--", self.name, line]


class _SshLines(ChildLines):
    """A program at the other end. ssh does not say which signal ended it."""

    def __init__(self, command: Sequence[str], wire: SshWire) -> None:
        super().__init__(command)
        self._wire = wire

    def last_lines(self) -> Sequence[str]:
        """See LineProcess.last_lines."""
        lines = super().last_lines()
        if self.wait(0) == SSH_FAILED and self._wire.is_connected():
            lines = [*lines, ENDED_BY_SIGNAL]
        return lines
