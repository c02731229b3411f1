"""The lab: which devices there are, read from lab.toml. It opens no connection.

    [device.pi5]
    transport = "ssh"
    host = "pi5"
    description = "the board on my desk"
    threads = 4

    [leases]                              # where it is kept which job uses which device; may be left out
    coordinator = "lab.example.com:20408"   # labgrid's, for devices with a `place`

The device `local`, this machine, needs no file. A row holds facts only; its transport (devices.drivers.table) adds keys
of its own and knows what to do with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.errors import LabError
from export.strict import build, read_toml, refuse_unknown
from runtimes.system.cores import MOST_THREADS


@dataclass(frozen=True, kw_only=True)
class Device:
    """One row of lab.toml: the keys that every transport has."""

    transport: str
    description: str = ""
    threads: int | None = None  # default for --threads; None is all cores the process may use
    place: str | None = None  # its name in labgrid, whose coordinator then says which job has it
    ready_below_c: float | None = None  # the warmest that its processor may be when a repetition starts
    meter: Sequence[str] | None = None  # a command of this machine that prints the device's watts, a number a line

    def problem(self) -> str | None:
        """What is wrong with a value whose type is right, and what to write instead; None if nothing is."""
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            return f"threads {self.threads}; give 1 to {MOST_THREADS}"
        if self.ready_below_c is not None and not 0 < self.ready_below_c <= 150:
            return f"ready_below_c {self.ready_below_c:g}; give degrees Celsius above 0, up to 150"
        if self.meter is not None and not self.meter:
            return "meter is an empty list; give a command, or leave it out"
        return None

    def key(self) -> str:
        """What tells this device from every other one that this machine reaches, by whatever name in whatever file."""
        return self.transport


@dataclass(frozen=True, kw_only=True)
class LeaseSettings:
    """The table [leases] of a lab file."""

    file: str | None = None  # of SQLite; None is one of this user
    coordinator: str | None = None  # HOST:PORT of labgrid's


@dataclass(frozen=True)
class Lab:
    """All devices by name."""

    devices: Mapping[str, Device]
    leases: LeaseSettings = LeaseSettings()

    def device(self, name: str) -> Device:
        """The device of this name. Raises LabError, which lists the known ones."""
        if name not in self.devices:
            raise LabError(f"unknown device {name!r}; known: {', '.join(sorted(self.devices))}; add it to lab.toml")
        return self.devices[name]


def read_lab(path: Path | None, rows: Mapping[str, type[Device]]) -> Lab:
    """The devices of a lab file, and `local`; None is a lab without a file. `rows` is a row's class by its transport.

    Raises LabError.
    """
    local = {"local": rows["local"](transport="local", description="this machine")}
    if path is None:
        return Lab(local)
    content = read_toml(path, LabError)
    refuse_unknown(content, ["device", "leases"], str(path), LabError)
    devices = content.get("device", {})
    if not isinstance(devices, dict):
        raise LabError(f"{path}: write each device as a table [device.NAME]")
    found = local | {name: _row(row, f"{path}: device.{name}", rows) for name, row in devices.items()}
    leases = build(LeaseSettings, content.get("leases", {}), f"{path}: leases", LabError)
    for name, device in found.items():
        if device.place is not None and leases.coordinator is None:
            raise LabError(f"{path}: device.{name}: has a place, and [leases] names no coordinator = 'HOST:PORT'")
    return Lab(found, leases)


def _row(row: object, where: str, rows: Mapping[str, type[Device]]) -> Device:
    transport = row.get("transport", "local") if isinstance(row, dict) else "local"
    if not isinstance(transport, str) or transport not in rows:
        raise LabError(f"{where}: transport {transport!r}; known: {', '.join(rows)}")
    if isinstance(row, dict) and "transport" not in row:
        _refuse_other_transports(row, where, rows)
    device = build(rows[transport], row, where, LabError)
    if (problem := device.problem()) is not None:
        raise LabError(f"{where}: {problem}")
    return device


def _refuse_other_transports(row: Mapping[str, object], where: str, rows: Mapping[str, type[Device]]) -> None:
    """A row without a transport is of this machine; a key of another transport shows that it was forgotten."""
    fields = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in rows.items()}
    for key in row:
        having = [name for name, known in fields.items() if key in known]
        if having and "local" not in having:
            choice = " or ".join(f'transport = "{name}"' for name in having)
            raise LabError(f"{where}: {key} is no key of this machine's own row; add {choice}")
