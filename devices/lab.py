"""The lab: which devices there are, read from lab.toml. It opens no connection.

    [device.pi5]
    transport = "ssh"
    host = "pi5"
    description = "the board on my desk"
    threads = 4

The device `local`, this machine, needs no file. A row is the facts; the behaviour is devices.drivers.table'.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.errors import LabError
from export.strict import build, refuse_unknown


@dataclass(frozen=True, kw_only=True)
class LocalDevice:
    """This machine: an agent in a process of its own, without a wire."""

    transport: Literal["local"] = "local"
    description: str = ""
    threads: int | None = None  # default for --threads; None is all cores the process may use
    agent: Sequence[str] | None = None  # the command that starts an agent; None is this Python's runtimes.agent
    adapter: str | None = None  # on Windows, as for a WindowsDevice
    allow_cpu: bool = False


@dataclass(frozen=True, kw_only=True)
class SshDevice:
    """A board with Python, reached through the user's OpenSSH client: ~/.ssh/config, keys and jump hosts hold."""

    transport: Literal["ssh"]
    host: str  # as in `ssh HOST`: a name of ~/.ssh/config, or user@address
    description: str = ""
    threads: int | None = None
    port: int | None = None
    config: str | None = None  # another file than ~/.ssh/config (`ssh -F`)
    cache: str = ".cache/phi-edge"  # on the device; relative is to the home folder
    python: str | None = None  # an interpreter on the device that has the engine; None: a venv is made in the cache
    wheelhouse: str | None = None  # a folder of wheels on this machine, for a device whose pip has no network


@dataclass(frozen=True, kw_only=True)
class WindowsDevice:
    """A Windows machine with Python behind its OpenSSH server, reached as an SshDevice is."""

    transport: Literal["windows"]
    host: str
    description: str = ""
    threads: int | None = None
    port: int | None = None
    config: str | None = None
    cache: str = ".cache/phi-edge"
    launcher: str = "python"  # what starts Python in the device's shell: a name on its PATH, or a path
    python: str | None = None  # a path as well: one that has the engine is used as it is; None: a venv is made by it
    packages: Literal["winml", "directml"] = "winml"  # what the venv gets: Windows ML's, or the frozen DirectML pair
    wheelhouse: str | None = None
    adapter: str | None = None  # the graphics adapter's number, LUID or a part of its name; None: most memory
    allow_cpu: bool = False  # where there is no adapter, instead of an error


@dataclass(frozen=True, kw_only=True)
class AdbDevice:
    """An Android phone, reached through the adb client."""

    transport: Literal["adb"]
    description: str = ""
    threads: int | None = None
    serial: str | None = None  # as `adb devices` lists it; None: the only one
    adb: str = "adb"  # the client program
    server: str | None = None  # HOST:PORT of the adb server; None: adb's default
    folder: str = "/data/local/tmp/phi-edge"
    runner: Literal["agent", "llama_main"] = "agent"
    program: str | None = None  # on this machine: the native agent, or llama_main
    libraries: Sequence[str] = ()  # on this machine: what the program loads, libonnxruntime.so first
    prefix: Sequence[str] = ()  # before the program on the device, such as ["taskset", "f0"] for its fast cores


Device = LocalDevice | SshDevice | WindowsDevice | AdbDevice
ROWS: Mapping[str, type[LocalDevice] | type[SshDevice] | type[WindowsDevice] | type[AdbDevice]] = {
    "local": LocalDevice,
    "ssh": SshDevice,
    "windows": WindowsDevice,
    "adb": AdbDevice,
}


@dataclass(frozen=True)
class Lab:
    """All devices by name."""

    devices: Mapping[str, Device]

    def device(self, name: str) -> Device:
        """The device of this name. Raises LabError, which lists the known ones."""
        if name not in self.devices:
            raise LabError(f"unknown device {name!r}; known: {', '.join(sorted(self.devices))}; add it to lab.toml")
        return self.devices[name]


LOCAL: Mapping[str, Device] = {"local": LocalDevice(description="this machine")}


def read_lab(path: Path | None) -> Lab:
    """The devices of a lab file, and `local`. None is a lab without a file. Raises LabError."""
    if path is None:
        return Lab(LOCAL)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LabError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise LabError(f"{path}: is not TOML ({error})") from error
    refuse_unknown(content, ["device"], str(path), LabError)
    rows = content.get("device", {})
    if not isinstance(rows, dict):
        raise LabError(f"{path}: write each device as a table [device.NAME]")
    return Lab({**LOCAL, **{name: _row(row, f"{path}: device.{name}") for name, row in rows.items()}})


def _row(row: object, where: str) -> Device:
    transport = row.get("transport", "local") if isinstance(row, dict) else "local"
    if not isinstance(transport, str) or transport not in ROWS:
        raise LabError(f"{where}: transport {transport!r}; known: {', '.join(ROWS)}")
    device = build(ROWS[transport], row, where, LabError)
    if device.threads is not None and device.threads < 1:
        raise LabError(f"{where}: threads {device.threads}; give 1 or more")
    if isinstance(device, LocalDevice) and device.agent is not None and not device.agent:
        raise LabError(f"{where}: agent is an empty list; give a command, or leave it out")
    if isinstance(device, SshDevice | WindowsDevice):
        _check_ssh(device, where)
    return device


def _check_ssh(device: SshDevice | WindowsDevice, where: str) -> None:
    if not device.host or device.host.startswith("-"):
        raise LabError(f"{where}: host {device.host!r}; give a name of ~/.ssh/config, or user@address")
    if device.port is not None and not 0 < device.port < 1 << 16:
        raise LabError(f"{where}: port {device.port}; give 1 to 65535")
    if device.python is not None and device.wheelhouse is not None:
        raise LabError(f"{where}: python names an interpreter that is used as it is; leave wheelhouse or python out")
    if device.cache in ("", "/", "~", ".") or device.cache.startswith("~"):
        raise LabError(f"{where}: cache {device.cache!r}; give a folder, absolute or relative to the home folder")
