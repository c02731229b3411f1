"""A real sshd on 127.0.0.1 with keys of its own, for lab devices without hardware. It opens no port to the world."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SSHD = "/usr/sbin/sshd"


class LocalSshd:
    """`name` is the host's in the client's configuration, `config`; `settings` are further ones of sshd_config."""

    def __init__(
        self, folder: Path, name: str, *, settings: Mapping[str, str] = {}, environment: Mapping[str, str] = {}
    ) -> None:
        self._folder = folder
        self._name = name
        self._settings = settings
        # A home of its own: the shell would run this machine's start-up files for every command.
        self._environment_there = {"HOME": str(folder)} | dict(environment)
        self.config = folder / "ssh_config"
        self._port = _free_port()
        self._sshd: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the keys and the two configurations."""
        for name in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)]
            subprocess.run(command, check=True, timeout=30)
        shutil.copy(self._folder / "user_key.pub", self._folder / "authorized_keys")
        self._write_configurations()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's empty folder; Debian's init script makes it

    def start(self) -> None:
        """Start sshd and wait until it takes connections."""
        command = [SSHD, "-D", "-f", str(self._folder / "sshd_config"), "-E", str(self._folder / "sshd.log")]
        self._sshd = subprocess.Popen(command, start_new_session=True)
        until_s = time.monotonic() + 20
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"sshd does not listen: {(self._folder / 'sshd.log').read_text()}")

    def stop(self) -> None:
        """Kill sshd and all its connections."""
        self.cut()
        if self._sshd is not None:
            self._sshd.kill()
            self._sshd.wait()
            self._sshd = None

    def cut(self) -> None:
        """Kill all connections, as a pulled cable does; sshd goes on listening."""
        if self._sshd is not None:
            for pid in _descendants(self._sshd.pid):
                if _name(pid).startswith("sshd"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The wire is silent: sshd and its connections are stopped. At the end they are killed, as by a cut cable."""
        assert self._sshd is not None
        halted = [self._sshd.pid, *(pid for pid in _descendants(self._sshd.pid) if _name(pid).startswith("sshd"))]
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self.cut()
            self._sshd.send_signal(signal.SIGCONT)

    def _write_configurations(self) -> None:
        folder = self._folder
        sshd = {
            "ListenAddress": "127.0.0.1",
            "Port": self._port,
            "HostKey": folder / "host_key",
            "AuthorizedKeysFile": folder / "authorized_keys",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PidFile": "none",
            "MaxStartups": "100",
            "MaxSessions": "100",
            "SetEnv": " ".join(f"{name}={value}" for name, value in self._environment_there.items()),
        } | dict(self._settings)
        (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in sshd.items()))
        key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self._port} {key}")
        ssh = {
            "HostName": "127.0.0.1",
            "Port": self._port,
            "User": getpass.getuser(),
            "IdentityFile": folder / "user_key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": folder / "known_hosts",
        }
        self.config.write_text(f"Host {self._name}\n" + "".join(f"  {key} {value}\n" for key, value in ssh.items()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _descendants(pid: int) -> list[int]:
    parents = {child: _parent(child) for child in all_pids()}
    found, generation = [], [pid]
    while generation:
        generation = [child for child, parent in parents.items() if parent in generation]
        found += generation
    return found


def _parent(pid: int) -> int:
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _name(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "comm").read_text()
    except OSError:
        return ""
