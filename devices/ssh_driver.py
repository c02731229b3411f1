"""A Raspberry Pi, or any board with Linux and Python, behind the user's OpenSSH client. See docs/raspberry-pi.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from devices import memory_plan
from devices.driver import Finding, Opened, Say
from devices.errors import DeviceError
from devices.examination import examine_board
from devices.lab import SshDevice
from devices.opening import conditions_of, open_agent
from devices.provision import bring_code, bring_venv, check_python
from devices.staging import SHORT_S, stage_artifact
from export.artifact import Artifact, Format
from runtimes.conditions import Conditions
from runtimes.errors import TransportError
from runtimes.ssh import SshHost

DIAGNOSIS_S = 20.0


class SshDriver:
    """See devices.driver.Driver."""

    def __init__(self, name: str, device: SshDevice) -> None:
        self._name = name
        self._device = device
        config = None if device.config is None else Path(device.config).expanduser()
        self._host = SshHost(device.host, port=device.port, config=config)
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
        )

    def examine(self) -> Iterator[Finding]:
        """See Driver.examine."""
        yield from examine_board(self._host, self._device, self._cache_folder, self._look)

    def close(self) -> None:
        """See Driver.close."""
        self._host.close()

    def _cache_folder(self) -> str:
        """The cache's absolute path, made if it is not there."""
        if self._cache is None:
            make = 'mkdir -p -- "$1" && cd -- "$1" && pwd -P'
            done = self._host.run(["sh", "-c", make, "sh", self._device.cache], deadline_s=SHORT_S)
            self._cache = done.checked(f"making {self._device.cache}").decode("utf-8", "surrogateescape").rstrip("\n")
        return self._cache

    def _prepare(self, engine: Format, say: Say) -> list[str]:
        """Our code and an interpreter on the device; returns the command that starts the agent."""
        if engine not in self._agents:
            cache, python = self._cache_folder(), self._device.python
            if python is None:
                house = self._device.wheelhouse
                python = bring_venv(self._host, cache, engine, None if house is None else Path(house), say)
            else:
                check_python(self._host, python)
            self._agents[engine] = self._command(bring_code(self._host, cache, python, say), python)
        return self._agents[engine]

    def _command(self, code: str, python: str) -> list[str]:
        return ["env", f"PYTHONPATH={code}", python, "-m", "runtimes.agent"]

    def _look(self, python: str) -> Conditions:
        """For doctor: the conditions with any Python that is new enough; no engine is needed."""
        code = bring_code(self._host, self._cache_folder(), python, _nothing)
        return self._sample(self._command(code, python), SHORT_S)

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
            "the device is up and was not restarted, so the connection was cut or the agent was ended there (out of "
            "memory? `dmesg` on the device tells)"
        )


def _nothing(what: str) -> None:
    """Nobody wants to know."""
