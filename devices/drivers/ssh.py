"""A Raspberry Pi, or any board with Linux and Python, behind the user's OpenSSH client. See docs/raspberry-pi.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from devices.checks.board import examine_board
from devices.drivers import memory_plan
from devices.drivers.driver import Finding, Opened, Say
from devices.drivers.files import SHORT_S, files_of
from devices.drivers.opening import conditions_of, open_agent
from devices.drivers.provision import bring_code, bring_venv, check_python
from devices.drivers.staging import stage_artifact
from devices.errors import DeviceError
from devices.lab import SshDevice, WindowsDevice
from devices.transports.host import Host
from devices.transports.ssh import SshHost
from export.artifact import Artifact, Format
from runtimes.engines.engine import ANY_ADAPTER, Graphics
from runtimes.errors import TransportError
from runtimes.system.conditions import Conditions

DIAGNOSIS_S = 20.0


class SshDriver:
    """See devices.drivers.driver.Driver."""

    _memory_hint = "out of memory? `dmesg` on the device tells"

    def __init__(self, name: str, device: SshDevice) -> None:
        self._name = name
        self._device: SshDevice | WindowsDevice = device
        self._host: Host = SshHost(device.host, port=device.port, config=config_file(device.config))
        self._cache: str | None = None
        self._agents: dict[Format, list[str]] = {}  # the command that starts the agent, where it is there

    def conditions(self) -> Conditions:
        """See Driver.conditions."""
        return self._conditions(SHORT_S)

    def stage(self, artifact: Artifact, say: Say) -> None:
        """See Driver.stage."""
        self._prepare(artifact.manifest.format, say)
        now = self.conditions()
        if refusal := memory_plan.refusal(artifact.manifest, now):
            raise DeviceError(f"device {self._name}: {refusal}")
        if warning := memory_plan.warning(artifact.manifest, now):
            say(f"warning: {warning}")
        stage_artifact(self._host, artifact, f"{self._cache_folder()}/artifacts", say)

    def open(self, artifact: Artifact, *, threads: int | None, hold: bool, cold: bool, deadline_s: float) -> Opened:
        """See Driver.open."""
        agent = self._prepare(artifact.manifest.format, _nothing)
        cache = self._cache_folder()
        return open_agent(
            self._host,
            [*agent, f"{cache}/artifacts/{artifact.manifest.digest()}"],
            artifact,
            threads=threads,
            hold=hold,
            cold=cold,
            deadline_s=deadline_s,
            lock=f"{cache}/agent.lock",
            diagnose=self._diagnose,
            graphics=self._graphics(artifact),
        )

    def examine(self) -> Iterator[Finding]:
        """See Driver.examine."""
        assert isinstance(self._device, SshDevice)
        yield from examine_board(self._host, self._device, self._cache_folder, self._look)

    def close(self) -> None:
        """See Driver.close."""
        self._host.close()

    def _cache_folder(self) -> str:
        """The cache's absolute path, made if it is not there."""
        if self._cache is None:
            self._cache = files_of(self._host).make_folder(self._device.cache)
        return self._cache

    def _prepare(self, engine: Format, say: Say) -> list[str]:
        """Our code and an interpreter on the device; returns the command that starts the agent."""
        if engine not in self._agents:
            cache = self._cache_folder()
            python = self._python(cache, engine, say)
            self._agents[engine] = self._command(bring_code(self._host, cache, python, say), python)
        return self._agents[engine]

    def _python(self, cache: str, engine: Format, say: Say) -> str:
        """An interpreter with the engine."""
        if self._device.python is None:
            return bring_venv(self._host, cache, engine, self._wheelhouse(), say, python="python3")
        check_python(self._host, self._device.python)
        return self._device.python

    def _wheelhouse(self) -> Path | None:
        return None if self._device.wheelhouse is None else Path(self._device.wheelhouse)

    def _graphics(self, artifact: Artifact) -> Graphics:
        return ANY_ADAPTER

    def _command(self, code: str, python: str) -> list[str]:
        return ["env", f"PYTHONPATH={code}", python, "-P", "-m", "runtimes.agent"]

    def _look(self, python: str) -> Conditions:
        """For doctor: the conditions with any Python that is new enough; no engine is needed."""
        return self._sample(self._command(self._code(python), python), SHORT_S)

    def _code(self, python: str) -> str:
        return bring_code(self._host, self._cache_folder(), python, _nothing)

    def _conditions(self, deadline_s: float) -> Conditions:
        if not self._agents:
            raise DeviceError(f"device {self._name}: stage an artifact first")
        return self._sample(next(iter(self._agents.values())), deadline_s)

    def _sample(self, agent: list[str], deadline_s: float) -> Conditions:
        done = self._host.run([*agent, "--sample"], deadline_s=deadline_s)
        return conditions_of(done.checked("reading the device's conditions").strip())

    def _diagnose(self, boot_id: str | None) -> str:
        """Why a running agent was lost, as far as a look at the device tells."""
        try:
            now = self._conditions(DIAGNOSIS_S)
        except (TransportError, DeviceError) as error:
            return f"the device cannot be reached any more ({str(error).splitlines()[0]})"
        if boot_id is not None and now.boot_id != boot_id:
            return "the device was restarted in between (its boot id changed)"
        return (
            "the device is up and was not restarted, so the connection was cut or the agent was ended there "
            f"({self._memory_hint})"
        )


def config_file(name: str | None) -> Path | None:
    """ssh's, as lab.toml names it."""
    return None if name is None else Path(name).expanduser()


def _nothing(what: str) -> None:
    """Nobody wants to know."""
