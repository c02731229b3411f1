"""A machine behind the user's own OpenSSH client as a Host: ~/.ssh/config, keys, agents and jump hosts hold.

It asks for no password (BatchMode) and stores none. The remote login shell must be a POSIX shell: commands are argument
lists, quoted once, here, with shlex. Every call goes over one connection (ControlMaster) and has a deadline.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runtimes.child import ChildLines, run_child
from runtimes.errors import ConnectionLostError, TransportError
from runtimes.host import WRITE_BLOCK_BYTES, Finished, LineProcess, last_lines, write_from

CONNECT_S = 10
IDLE_S = 60
LOOK_S = 60.0
SSH_FAILED = 255  # ssh's own exit code, and of a remote program that a signal ended
_SIZE = 'if [ -e "$1" ]; then stat -L -c %s "$1"; else echo 0; fi'
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


class SshHost:
    """See runtimes.host.Host. It connects at the first call, and again when the connection was lost."""

    def __init__(self, host: str, *, port: int | None = None, config: Path | None = None) -> None:
        if host.startswith("-"):
            raise TransportError(f"{host!r} is an option of ssh and no host; give a name of ~/.ssh/config")
        self._name = host
        # A socket's path has about 100 characters: a short folder of our own, which only we may read.
        self._folder = Path(tempfile.mkdtemp(prefix="phi-ssh-"))
        self._control = self._folder / "c"
        self._arguments = ["ssh", "-T", *(["-F", str(config)] if config else []), *(["-p", str(port)] if port else [])]
        self._arguments += ["-o", f"ControlPath={self._control}"]
        for name, value in _OPTIONS.items():
            self._arguments += ["-o", f"{name}={value}"]

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """See Host.run."""
        self._connect()
        return self._told(run_child(self._command(command), deadline_s=deadline_s, stdin=stdin), command)

    def start(self, command: Sequence[str]) -> LineProcess:
        """See Host.start. `exec`: the signal and the pipes of the session are the program's, not a shell's."""
        self._connect()
        return ChildLines(self._command(["exec", *command]))

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push."""
        there = self.run(["sh", "-c", _SIZE, "sh", remote], deadline_s=LOOK_S)
        blocks = int(there.checked(f"looking at {remote}")) // WRITE_BLOCK_BYTES
        self._connect()
        with local.open("rb") as source:
            os.lseek(source.fileno(), blocks * WRITE_BLOCK_BYTES, os.SEEK_SET)
            done = run_child(self._command(write_from(remote, blocks)), deadline_s=deadline_s, stdin=source)
        self._told(done, ["dd"]).checked(f"writing {remote}")

    def pull(self, remote: str, local: Path, *, deadline_s: float) -> None:
        """See Host.pull."""
        content = self.run(["cat", "--", remote], deadline_s=deadline_s).checked(f"reading {remote}")
        part = local.with_name(local.name + ".part")
        part.write_bytes(content)
        part.replace(local)

    def close(self) -> None:
        """See Host.close."""
        if self._control.exists():
            with contextlib.suppress(TransportError):
                run_child([*self._arguments, "-O", "exit", "--", self._name], deadline_s=CONNECT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> None:
        """Start the connection that all calls share, unless it is there."""
        if self._control.exists():
            if run_child([*self._arguments, "-O", "check", "--", self._name], deadline_s=CONNECT_S).exit_code == 0:
                return
            self._control.unlink(missing_ok=True)  # of a master that was killed
        self._folder.mkdir(exist_ok=True)
        # The master leaves by itself when nothing uses it any more, also if this process dies without a word.
        keep = ["-o", "ControlMaster=yes", "-o", f"ControlPersist={IDLE_S}"]
        master = [*self._arguments, *keep, "--", self._name, "true"]
        # A proxy command or a jump host may need longer than ConnectTimeout.
        done = run_child(master, deadline_s=3 * CONNECT_S)
        if done.exit_code != 0:
            raise ConnectionLostError(
                f"{self._name} cannot be reached by ssh; try `ssh {self._name} true`, and `phi-edge doctor`",
                command=master,
                exit_code=done.exit_code,
                last_lines=last_lines(done.stderr),
            )

    def _command(self, command: Sequence[str]) -> list[str]:
        if any("\0" in argument for argument in command):
            raise TransportError(f"an argument holds a NUL, which no program can be given: {command!r:.80}")
        return [*self._arguments, "-o", "ControlMaster=no", "--", self._name, shlex.join(command)]

    def _told(self, done: Finished, command: Sequence[str]) -> Finished:
        """ssh's own failure is the wire's. A remote program's 255 reads the same; ours never use it."""
        if done.exit_code == SSH_FAILED:
            raise ConnectionLostError(
                f"the connection to {self._name} was lost",
                command=command,
                exit_code=SSH_FAILED,
                last_lines=last_lines(done.stderr),
            )
        return Finished(command=tuple(command), exit_code=done.exit_code, stdout=done.stdout, stderr=done.stderr)
