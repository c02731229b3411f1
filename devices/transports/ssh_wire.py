"""The user's own OpenSSH client as a wire: ~/.ssh/config, keys, agents and jump hosts hold.

It asks for no password (BatchMode) and stores none. Every call goes over one connection (ControlMaster) and has a
deadline. How a command line is quoted for the shell at
the other end is decided in ssh.py and windows_host.py.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from devices.transports.child import ChildLines, run_child
from devices.transports.host import Finished, LineProcess, last_lines
from runtimes.errors import ConnectionLostError, TransportError

CONNECT_S = 10
IDLE_S = 60
SSH_FAILED = 255  # ssh's own exit code, and of a remote program that a signal ended
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(CONNECT_S),
    # A cut cable is noticed after 15 s.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "ERROR",
}


class SshWire:
    """It connects at the first call, and again when the connection was lost."""

    def __init__(self, host: str, *, port: int | None, config: Path | None, greeting: str = "true") -> None:
        """`greeting` is the command line that is run once to make the connection; it exits with 0."""
        if host.startswith("-"):
            raise TransportError(f"{host!r} is an option of ssh and no host; give a name of ~/.ssh/config")
        self.name = host
        self.greeted = b""  # what the greeting wrote
        self._greeting = greeting
        # A socket's path has about 100 characters: a short folder of our own, which only we may read.
        self._folder = Path(tempfile.mkdtemp(prefix="phi-ssh-"))
        self.control = self._folder / "c"
        self._arguments = ["ssh", "-T", *(["-F", str(config)] if config else []), *(["-p", str(port)] if port else [])]
        self._arguments += ["-o", f"ControlPath={self.control}"]
        for name, value in _OPTIONS.items():
            self._arguments += ["-o", f"{name}={value}"]

    def run(self, line: str, *, deadline_s: float, stdin: bytes | IO[bytes], told: Sequence[str]) -> Finished:
        """Run a command line to its end. `told` is what it does, for errors."""
        self.connect()
        done = run_child(self._command(line), deadline_s=deadline_s, stdin=stdin)
        # ssh's own failure is the wire's. A remote program's 255 reads the same; ours never use it.
        if done.exit_code == SSH_FAILED:
            raise ConnectionLostError(
                f"the connection to {self.name} was lost",
                command=told,
                exit_code=SSH_FAILED,
                last_lines=last_lines(done.stderr),
            )
        return Finished(command=tuple(told), exit_code=done.exit_code, stdout=done.stdout, stderr=done.stderr)

    def start(self, line: str) -> LineProcess:
        """Start a command line to talk with."""
        self.connect()
        return ChildLines(self._command(line))

    def connect(self) -> None:
        """Start the connection that all calls share, unless it is there."""
        if self.control.exists():
            if run_child([*self._arguments, "-O", "check", "--", self.name], deadline_s=CONNECT_S).exit_code == 0:
                return
            self.control.unlink(missing_ok=True)  # of a master that was killed
        self._folder.mkdir(exist_ok=True)
        # The master leaves by itself when nothing uses it any more, also if this process dies without a word.
        keep = ["-o", "ControlMaster=yes", "-o", f"ControlPersist={IDLE_S}"]
        master = [*self._arguments, *keep, "--", self.name, self._greeting]
        # A proxy command or a jump host may need longer than ConnectTimeout.
        done = run_child(master, deadline_s=3 * CONNECT_S)
        if done.exit_code != 0:
            raise ConnectionLostError(
                f"{self.name} cannot be reached by ssh; try `ssh {self.name} {self._greeting}`, and `phi-edge doctor`",
                command=master,
                exit_code=done.exit_code,
                last_lines=last_lines(done.stderr),
            )
        self.greeted = done.stdout

    def close(self) -> None:
        """Drop the connection. Safe to call twice."""
        if self.control.exists():
            with contextlib.suppress(TransportError):
                run_child([*self._arguments, "-O", "exit", "--", self.name], deadline_s=CONNECT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self, line: str) -> list[str]:
        return [*self._arguments, "-o", "ControlMaster=no", "--", self.name, line]
