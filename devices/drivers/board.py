"""A device that runs our agent in a Python of its own: a Linux board (ssh.py) or a Windows machine (windows.py)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from devices.drivers import memory_plan
from devices.drivers.driver import Finding, Loading, Opened, Say
from devices.drivers.identity import Identity, identify_posix, identity_of
from devices.drivers.opening import AGENT, conditions_of, open_agent
from devices.drivers.provision import POSIX, Python, System, bring_code, bring_venv, look_at_python
from devices.drivers.staging import stage_artifact
from devices.energy.board import MODULE, board_meter, what_tells
from devices.errors import DeviceError
from devices.transports.host import Host
from export.artifact import Artifact, Format
from runtimes.engines.engine import ANY_ADAPTER, Graphics
from runtimes.errors import TransportError
from runtimes.system.boot import restarted
from runtimes.system.conditions import Conditions


@dataclass(frozen=True, kw_only=True)
class Board:
    """What differs between such devices. Nothing in it opens a connection."""

    name: str  # in lab.toml
    address: str  # as in `ssh ADDRESS`
    host: Host
    system: System
    cache: str  # a folder on the device; relative is to the home folder
    launcher: str  # starts a Python on the device, which makes the virtual environment
    python: str | None  # an interpreter on the device that has the engine; None: a virtual environment is made
    packages: Mapping[Format, str]  # format that it runs -> phi-edge's extra that brings the engine
    wheelhouse: Path | None = None  # a folder of wheels on this machine, for a device whose pip has no network
    graphics: Graphics = ANY_ADAPTER  # for artifacts that run on a graphics adapter
    memory_hint: str  # where the device's system reports that it killed a process for its memory

    @property
    def starter(self) -> str:
        """A Python that is there before we install anything."""
        return self.python or self.launcher


class PythonBoardDriver:
    """See devices.drivers.driver.Driver."""

    def __init__(self, board: Board, examine: Callable[[PythonBoardDriver], Iterator[Finding]]) -> None:
        """`examine` is what doctor checks (devices.checks)."""
        self.board = board
        self._examine = examine
        self._python: Python | None = None
        self._cache: str | None = None
        self._agents: dict[Format, list[str]] = {}  # the command that starts the agent, where it is there

    def conditions(self) -> Conditions:
        """See Driver.conditions."""
        return self._conditions(self.board.host.timeouts.command_s)

    def identify(self) -> Identity:
        """See Driver.identify."""
        return identify_posix(self.board.host) if self.board.system is POSIX else identity_of(self.look())

    def stage(self, artifact: Artifact, say: Say) -> None:
        """See Driver.stage."""
        self._prepare(artifact.manifest.format, say)
        now = self.conditions()
        if refusal := memory_plan.refusal(artifact.manifest, now):
            raise DeviceError(f"device {self.board.name}: {refusal}")
        if warning := memory_plan.warning(artifact.manifest, now):
            say(f"warning: {warning}")
        stage_artifact(self.board.host, artifact, f"{self.cache_folder()}/artifacts", say)

    def open(self, artifact: Artifact, loading: Loading) -> Opened:
        """See Driver.open."""
        agent = self._prepare(artifact.manifest.format, _silent)
        cache = self.cache_folder()
        on_adapter = artifact.manifest.engine.get("provider") == "dml"
        # `hold` is of what is measured. Before the loading, because another Python starts for it.
        meter = self.meter_command() if loading.hold and self.energy_source is not None else None
        opened = open_agent(
            self.board.host,
            [*agent, f"{cache}/artifacts/{artifact.manifest.digest()}"],
            artifact,
            loading,
            lock=f"{cache}/agent.lock",
            diagnose=self._diagnose,
            graphics=self.board.graphics if on_adapter else ANY_ADAPTER,
        )
        if meter is None:
            return opened
        return dataclasses.replace(opened, energy=lambda: board_meter(self.board.host, meter))

    def examine(self) -> Iterator[Finding]:
        """See Driver.examine."""
        return self._examine(self)

    def close(self) -> None:
        """See Driver.close."""
        self.board.host.close()

    def python(self) -> Python:
        """The Python that is there before we install anything. Raises DeviceError for a missing or too old one."""
        if self._python is None:
            self._python = look_at_python(self.board.host, self.board.starter, self.board.system)
        return self._python

    def cache_folder(self) -> str:
        """The cache's absolute path, made if it is not there."""
        if self._cache is None:
            self.python()  # on Windows it does all the rest, so its absence must be reported first
            self._cache = self.board.host.files.make_folder(self.board.cache)
        return self._cache

    def our_python(self, module: str) -> list[str]:
        """The command that runs one of our modules with the Python that is there. It needs no engine."""
        code = bring_code(self.board.host, self.cache_folder(), self.board.starter, _silent)
        return ["env", f"PYTHONPATH={code}", self.board.starter, "-P", "-m", module]

    @functools.cached_property
    def energy_source(self) -> str | None:
        """What tells its energy; None where nothing on it can."""
        return what_tells(self.board.host, self.meter_command()) if self.board.system is POSIX else None

    def meter_command(self) -> list[str]:
        """What prints its energy there. It needs no engine."""
        return self.our_python(MODULE)

    def look(self) -> Conditions:
        """The device's conditions, for doctor: before an engine is installed."""
        return self._sample(self.our_python(AGENT[-1]), self.board.host.timeouts.command_s)

    def _prepare(self, format: Format, say: Say) -> list[str]:
        """Bring our code and an interpreter with the engine; returns the command that starts the agent."""
        if format not in self.board.packages:
            raise DeviceError(
                f"device {self.board.name}: its artifact has the format {format}, and this kind of device runs "
                f"{', '.join(self.board.packages)}; export for another target"
            )
        if format not in self._agents:
            cache, board = self.cache_folder(), self.board
            python = board.python
            if python is None:
                python = bring_venv(
                    board.host, cache, board.packages[format], board.wheelhouse, say,
                    system=board.system, python=self.python(),
                )  # fmt: skip
            code = bring_code(board.host, cache, python, say)
            self._agents[format] = ["env", f"PYTHONPATH={code}", python, *AGENT]
        return self._agents[format]

    def _conditions(self, deadline_s: float) -> Conditions:
        if not self._agents:
            raise DeviceError(f"device {self.board.name}: stage an artifact first")
        return self._sample(next(iter(self._agents.values())), deadline_s)

    def _sample(self, agent: list[str], deadline_s: float) -> Conditions:
        done = self.board.host.run([*agent, "--sample"], deadline_s=deadline_s)
        return conditions_of(done.checked("reading the device's conditions").strip())

    def _diagnose(self, boot_id: str | None) -> str:
        """Why a running agent was lost, as far as the device can say now."""
        try:
            now = self._conditions(self.board.host.timeouts.diagnose_s)
        except TransportError as error:
            return f"the device cannot be reached any more ({error.message})"
        except DeviceError as error:  # it answers, but not with conditions
            return f"why is unknown ({error})"
        if restarted(boot_id, now.boot_id):
            return "the device was restarted in between (its boot id changed)"
        return (
            "the device is up and was not restarted, so the connection was cut or the agent was ended there "
            f"(out of memory? {self.board.memory_hint})"
        )


def _silent(what: str) -> None:
    """For steps that are done already, or that doctor takes: no progress is shown."""
