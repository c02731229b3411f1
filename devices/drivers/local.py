"""This machine as a device: nothing to bring over, an agent in a fresh process."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from devices.drivers.driver import Finding, Loading, Opened, Say, Transport
from devices.drivers.identity import Identity, identity_of
from devices.drivers.opening import AGENT, open_agent
from devices.drivers.stock.runner import open_runner
from devices.lab import Device
from devices.transports.local import LocalHost
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from export.artifact import Artifact
from runtimes.engines.engine import Graphics
from runtimes.stock.model import StockModel
from runtimes.stock.table import STOCK
from runtimes.system.conditions import Conditions, read_conditions
from runtimes.system.energy.meter import EnergyMeter


@dataclass(frozen=True, kw_only=True)
class LocalDevice(Device):
    """This machine: an agent in a process of its own, without a wire."""

    transport: Literal["local"] = "local"
    agent: Sequence[str] | None = None  # the command that starts an agent; None is this Python's runtimes.agent
    adapter: str | None = None  # a graphics adapter, as `phi-edge run --adapter` takes it
    allow_cpu: bool = False

    def problem(self) -> str | None:
        """See Device.problem."""
        if self.agent is not None and not self.agent:
            return "agent is an empty list; give a command, or leave it out"
        return super().problem()


class LocalDriver:
    """See devices.drivers.driver.Driver."""

    def __init__(self, name: str, device: LocalDevice, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._agent = device.agent or (sys.executable, *AGENT)
        self._graphics = Graphics(adapter=device.adapter, allow_cpu=device.allow_cpu)
        self._host = LocalHost(timeouts)

    def conditions(self) -> Conditions:
        """See Driver.conditions."""
        return read_conditions()

    def identify(self) -> Identity:
        """See Driver.identify."""
        return identity_of(self.conditions())

    def stage(self, artifact: Artifact, say: Say) -> None:
        """Everything is here already."""

    def open(self, artifact: Artifact, loading: Loading) -> Opened:
        """See Driver.open."""
        opened = open_agent(
            self._host,
            [*self._agent, str(artifact.folder)],
            artifact,
            loading,
            here=True,
            graphics=self._graphics,
        )
        return dataclasses.replace(opened, energy=EnergyMeter)

    def open_stock(self, model: StockModel, loading: Loading, context_tokens: int) -> Opened:
        """See StockDriver."""
        if STOCK[model.engine].open is None:
            return open_runner(self._host, model, loading)
        stock = ["--stock", model.engine, "--context", str(context_tokens)]
        opened = open_agent(self._host, [*self._agent, str(model.path), *stock], None, loading, here=True)
        return dataclasses.replace(opened, energy=EnergyMeter)

    def examine(self) -> Iterator[Finding]:
        """Nothing beyond what doctor finds on this machine anyway (devices.checks.doctor)."""
        yield from ()

    def close(self) -> None:
        """Nothing is open."""


LOCAL = Transport(row=LocalDevice, driver=LocalDriver)
