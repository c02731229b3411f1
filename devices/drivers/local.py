"""This machine as a device: nothing to bring over, an agent in a fresh process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from devices.drivers.driver import Finding, Opened, Say
from devices.drivers.opening import open_agent
from devices.lab import LocalDevice
from devices.transports.local import LocalHost
from export.artifact import Artifact
from runtimes.engines.engine import Graphics
from runtimes.system.conditions import Conditions, read_conditions


class LocalDriver:
    """See devices.drivers.driver.Driver."""

    def __init__(self, device: LocalDevice) -> None:
        self._agent = device.agent or (sys.executable, "-P", "-m", "runtimes.agent")
        self._graphics = Graphics(adapter=device.adapter, allow_cpu=device.allow_cpu)
        self._host = LocalHost()

    def conditions(self) -> Conditions:
        """See Driver.conditions."""
        return read_conditions()

    def stage(self, artifact: Artifact, say: Say) -> None:
        """Everything is here already."""

    def open(self, artifact: Artifact, *, threads: int | None, hold: bool, cold: bool, deadline_s: float) -> Opened:
        """See Driver.open."""
        return open_agent(
            self._host,
            [*self._agent, str(artifact.folder)],
            artifact,
            threads=threads,
            hold=hold,
            cold=cold,
            deadline_s=deadline_s,
            here=True,
            graphics=self._graphics,
        )

    def examine(self) -> Iterator[Finding]:
        """The host's own findings say it all (devices.checks.doctor)."""
        yield from ()

    def close(self) -> None:
        """Nothing is held."""
