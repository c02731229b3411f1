"""What bench, run and doctor ask of a device, whatever its transport: the behaviour of a row of lab.toml.

Implementations: local.py, adb.py, board.py for ssh.py and windows.py, and cloud/driver.py; the table is table.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

from devices.drivers.identity import Identity
from devices.energy.meter import Meter
from devices.lab import Device
from devices.transports.self_timed import Timed
from export.artifact import Artifact
from runtimes.loop.tokens import TokenSource
from runtimes.system.conditions import Conditions

Say = Callable[[str], None]  # what is being done, for a progress bar
D = TypeVar("D", bound=Device)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How to load an artifact, and how long it may take."""

    threads: int | None = None  # None is all cores that the process may use
    hold: bool = False  # send all tokens at the end of each answer, so that no writing is measured
    cold: bool = False  # drop the artifact from the page cache first
    wait_s: float = 600.0  # for each wait: for the ready line, and for each token
    total_s: float | None = None  # for everything, from the start of the process on; None: no limit


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An artifact that is loaded on a device, in a process of its own, and what is known of the loading."""

    source: TokenSource
    load_s: float | None = None  # process start to ready, by the device's clock; None where it cannot say
    open_s: float | None = None
    load_mode: Literal["mmap", "read"] | None = None
    cached_share: float | None = None  # of the weights, before they were opened
    versions: Mapping[str, str] = field(default_factory=dict)
    accelerator: str | None = None  # what it computes on; None is the CPU, or unknown
    finish: Callable[[], None]  # ends the process and raises TransportError if it fails at its end
    timed: Timed | None = None  # instead of the source, where the runner reports no token's time
    energy: Callable[[], Meter] | None = None  # of the whole device; None where nothing on it can tell


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of `phi-edge doctor`."""

    what: str  # "onnxruntime", "throttling"
    state: Literal["ok", "warning", "wrong"]
    seen: str
    fix: str | None = None  # the command or act that fixes it; for all but ok


class Driver(Protocol):
    """A device, connected or ready to. Errors are TransportError (the wire, the device) and DeviceError (the rest)."""

    def conditions(self) -> Conditions:
        """The state of the device's machine now."""
        ...

    def identify(self) -> Identity:
        """What the device is. Brings nothing to it that takes long."""
        ...

    def stage(self, artifact: Artifact, say: Say) -> None:
        """Bring to the device what it lacks to run the artifact: engine, agent, files, verified by hash. Idempotent; an
        interrupted one is resumed. Refuses an artifact that does not fit into the device's memory."""
        ...

    def open(self, artifact: Artifact, loading: Loading) -> Opened:
        """Load a staged artifact in a fresh process."""
        ...

    def examine(self) -> Iterator[Finding]:
        """What is missing or wrong on the device. A device that cannot be reached is a finding, not an error."""
        ...

    def close(self) -> None:
        """Drop the connection. Safe to call twice."""
        ...


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that this machine needs for a transport."""

    name: str
    purpose: str
    version: str  # the argument that makes it print its version
    fix: str  # the command that installs it


@dataclass(frozen=True, kw_only=True)
class Transport(Generic[D]):
    """One row of the table of transports: what lab.toml may say about such a device, and what it does."""

    row: type[D]
    driver: Callable[[str, D], Driver]  # from the device's name and its row; it opens no connection yet
    program: Program | None = None

    def open(self, name: str, device: Device) -> Driver:
        """The driver of a device. It connects when it is first asked for something."""
        assert isinstance(device, self.row)
        return self.driver(name, device)


def worst(findings: Sequence[Finding]) -> Literal["ok", "warning", "wrong"]:
    """The state of the whole."""
    states = {finding.state for finding in findings}
    return "wrong" if "wrong" in states else "warning" if "warning" in states else "ok"
