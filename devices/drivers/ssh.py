"""A Raspberry Pi, or any board with Linux and Python, behind the user's OpenSSH client. See docs/raspberry-pi.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.checks.board import examine_board
from devices.drivers.board import Board, PythonBoardDriver
from devices.drivers.driver import Program, Transport
from devices.drivers.provision import POSIX
from devices.lab import Device
from devices.transports.ssh import SshHost
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts

OPENSSH = Program(name="ssh", purpose="devices behind ssh", version="-V", fix="sudo apt-get install openssh-client")


@dataclass(frozen=True, kw_only=True)
class OverSsh(Device):
    """The keys of every device that is reached through the user's OpenSSH client, with its ~/.ssh/config and keys."""

    host: str  # as in `ssh HOST`: a name of ~/.ssh/config, or user@address
    port: int | None = None
    config: str | None = None  # another file than ~/.ssh/config (`ssh -F`)
    cache: str = ".cache/phi-edge"  # on the device; relative is to the home folder
    python: str | None = None  # an interpreter on the device that has the engine; None: a venv is made in the cache
    wheelhouse: str | None = None  # a folder of wheels on this machine, for a device whose pip has no network

    def problem(self) -> str | None:
        """See Device.problem."""
        if not self.host or self.host.startswith("-"):
            return f"host {self.host!r}; give a name of ~/.ssh/config, or user@address"
        if self.port is not None and not 0 < self.port < 1 << 16:
            return f"port {self.port}; give 1 to 65535"
        if self.python is not None and self.wheelhouse is not None:
            return "python names an interpreter that is used as it is; leave wheelhouse or python out"
        if self.cache in ("", "/", "~", ".") or self.cache.startswith("~"):
            return f"cache {self.cache!r}; give a folder, absolute or relative to the home folder"
        return super().problem()

    def key(self) -> str:
        """See Device.key."""
        return f"ssh:{self.host}:{self.port or ''}:{self.config or ''}"

    def config_file(self) -> Path | None:
        """ssh's configuration on this machine; None is ssh's own default."""
        return None if self.config is None else Path(self.config).expanduser()

    def wheels(self) -> Path | None:
        """The folder of wheels on this machine."""
        return None if self.wheelhouse is None else Path(self.wheelhouse).expanduser()


@dataclass(frozen=True, kw_only=True)
class SshDevice(OverSsh):
    """A board with Linux and Python."""

    transport: Literal["ssh"]


def ssh_driver(name: str, device: SshDevice, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> PythonBoardDriver:
    """See Transport.driver."""
    board = Board(
        name=name,
        address=device.host,
        host=SshHost(device.host, port=device.port, config=device.config_file(), timeouts=timeouts),
        system=POSIX,
        cache=device.cache,
        launcher="python3",
        python=device.python,
        packages={"onnx": "onnx", "executorch": "executorch"},
        wheelhouse=device.wheels(),
        memory_hint="`dmesg` on the device shows it",
    )
    return PythonBoardDriver(board, examine_board)


SSH = Transport(row=SshDevice, driver=ssh_driver, program=OPENSSH)
