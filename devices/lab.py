"""The lab: which devices there are, read from lab.toml. It opens no connection.

    [device.pi5]
    transport = "local"
    description = "the board on my desk"
    threads = 4

The device `local`, this machine, needs no file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.errors import LabError
from devices.strict import build, refuse_unknown


@dataclass(frozen=True, kw_only=True)
class Device:
    """One row of lab.toml: the facts; what can be done with them is the transport's."""

    transport: Literal["local"] = "local"
    description: str = ""
    threads: int | None = None  # default for --threads; None is all cores the process may use
    worker: Sequence[str] | None = None  # the command that starts a worker; None is this Python's devices.worker


@dataclass(frozen=True)
class Lab:
    """All devices by name."""

    devices: Mapping[str, Device]

    def device(self, name: str) -> Device:
        """The device of this name. Raises LabError, which lists the known ones."""
        if name not in self.devices:
            raise LabError(f"unknown device {name!r}; known: {', '.join(sorted(self.devices))}; add it to lab.toml")
        return self.devices[name]


LOCAL: Mapping[str, Device] = {"local": Device(description="this machine")}


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
    devices = {name: build(Device, row, f"{path}: device.{name}", LabError) for name, row in rows.items()}
    for name, device in devices.items():
        if device.threads is not None and device.threads < 1:
            raise LabError(f"{path}: device.{name}: threads {device.threads}; give 1 or more")
        if device.worker is not None and not device.worker:
            raise LabError(f"{path}: device.{name}: worker is an empty list; give a command, or leave it out")
    return Lab({**LOCAL, **devices})
