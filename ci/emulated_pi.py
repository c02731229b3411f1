"""A lab device without hardware: a real sshd on 127.0.0.1 in front of the emulated Raspberry Pi 5.

The wire, the client, the keys and the aarch64 libraries are real; the shell's small programs (cat, mv, sha256sum) are
this machine's. `phi-edge` reaches it by a lab file like any other board.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).parent.parent
SSHD = "/usr/sbin/sshd"
NAME = "pi5"


def missing() -> str | None:
    """What this machine lacks to emulate a Pi; None if nothing."""
    lacking = [name for name in ("qemu-aarch64-static", SSHD, "ssh") if shutil.which(name) is None]
    return f"needs {', '.join(lacking)}: ci/install_system.sh" if lacking else None


def pi_folder() -> Path:
    """Where the emulated Pi is kept between runs; another checkout's, made in another way, stands beside it."""
    cache = Path(os.environ.get("PHI_EDGE_CACHE") or Path.home() / ".cache" / "phi-edge")
    made_of = [REPOSITORY / name for name in ("ci/emulate_pi5.sh", "constraints.txt")]
    return cache / f"pi5-{hashlib.sha256(b''.join(path.read_bytes() for path in made_of)).hexdigest()[:8]}"


def build_pi() -> Path:
    """Build it unless it is there; a minute the first time."""
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run([str(REPOSITORY / "ci/emulate_pi5.sh"), str(pi_folder())], check=True, timeout=600, env=environment)
    return pi_folder()


def build_executorch(pi: Path) -> Path:
    """The board's Python with ExecuTorch; 440 MB are downloaded the first time."""
    script, environment = REPOSITORY / "ci/emulate_pi5_executorch.sh", os.environ | {"PYTHON": sys.executable}
    subprocess.run([str(script), str(pi)], check=True, timeout=1200, env=environment)
    return pi / "bin/python3-executorch"


class EmulatedPi:
    """`with EmulatedPi(folder, pi) as board: ... --lab board.lab --device pi5`. Its keys are in `folder`."""

    def __init__(self, folder: Path, pi: Path) -> None:
        self._folder = folder
        self.pi = pi
        self.lab = folder / "lab.toml"
        self.config = folder / "ssh_config"
        self.cache = folder / "cache on the board"
        self._port = _free_port()
        self._sshd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmulatedPi:
        for name in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)]
            subprocess.run(command, check=True, timeout=30)
        shutil.copy(self._folder / "user_key.pub", self._folder / "authorized_keys")
        self._write_configurations()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's empty folder; Debian's init script makes it
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

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
        """The wire is silent: sshd and its connections stand still. Connections die, as those of a pulled cable do."""
        assert self._sshd is not None
        halted = [self._sshd.pid, *(pid for pid in _descendants(self._sshd.pid) if _name(pid).startswith("sshd"))]
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self.cut()
            self._sshd.send_signal(signal.SIGCONT)

    def agents(self) -> list[int]:
        """The agents that run on the board now."""
        return [pid for pid in _all_pids() if b"runtimes.agent" in _words(pid) and b"qemu" in _words(pid)[0]]

    def row(self, **changes: str) -> str:
        """The lab file's row, with other or further keys."""
        keys = {
            "transport": "ssh",
            "host": NAME,
            "config": str(self.config),
            "cache": str(self.cache),
            "python": str(self.pi / "bin/python3-onnx"),
        } | changes
        return f"[device.{NAME}]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items() if value)

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
            # A home of its own: the shell would run this machine's start-up files for every command.
            "SetEnv": f"PATH={self.pi}/bin:/usr/local/bin:/usr/bin:/bin HOME={folder}",
        }
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
        self.config.write_text(f"Host {NAME}\n" + "".join(f"  {key} {value}\n" for key, value in ssh.items()))
        self.lab.write_text(self.row())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _descendants(pid: int) -> list[int]:
    parents = {child: _parent(child) for child in _all_pids()}
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


def _words(pid: int) -> list[bytes]:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def _name(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "comm").read_text()
    except OSError:
        return ""
