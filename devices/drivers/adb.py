"""An Android phone behind the adb client, with a native agent or ExecuTorch's llama_main. See docs/android.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from devices.checks.adb import examine_phone
from devices.drivers import memory_plan
from devices.drivers.adb_conditions import read_adb_conditions
from devices.drivers.driver import Finding, Loading, Opened, Program, Say, Transport
from devices.drivers.identity import Identity, identify_android
from devices.drivers.opening import open_agent
from devices.drivers.staging import describe, push_file, stage_artifact
from devices.energy.phone import phone_meter
from devices.errors import DeviceError
from devices.lab import Device
from devices.transports.adb.devices import Client
from devices.transports.adb.host import AdbHost
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from export.artifact import Artifact, File, Format
from runtimes.errors import TransportError
from runtimes.system.boot import restarted
from runtimes.system.conditions import Conditions
from runtimes.system.size import PHONE_SYSTEM_BYTES

Runner = Literal["agent", "executorch-agent", "llama_main"]
_FORMATS: Mapping[Runner, Format] = {"agent": "onnx", "executorch-agent": "executorch", "llama_main": "executorch"}
_ENDED = (
    "the device is up and was not restarted, so the connection was cut or the agent was ended there (by lmkd, "
    "Android's low-memory killer? `adb logcat -b crash,events` shows it)"
)


@dataclass(frozen=True, kw_only=True)
class AdbDevice(Device):
    """An Android phone, reached through the adb client."""

    transport: Literal["adb"]
    serial: str | None = None  # as `adb devices` lists it; None: the only one
    adb: str = "adb"  # the client program
    server: str | None = None  # HOST:PORT of the adb server; None: adb's default
    folder: str = "/data/local/tmp/phi-edge"
    runner: Runner = "agent"
    program: str | None = None  # on this machine: the native agent, with one engine or the other, or llama_main
    libraries: Sequence[str] = ()  # on this machine: what the program loads, libonnxruntime.so first
    prefix: Sequence[str] = ()  # before the program on the device, such as ["taskset", "f0"] for its fast cores

    def key(self) -> str:
        """See Device.key."""
        return phone_key(self.server, self.serial)


def phone_key(server: str | None, serial: str | None) -> str:
    """See Device.key: one phone, whatever on it is used, where its rows give the same server and serial."""
    return f"adb:{(server or '').replace('localhost', '127.0.0.1')}:{serial or ''}"


class AdbDriver:
    """See devices.drivers.driver.Driver. It connects when it is first asked for something."""

    def __init__(self, name: str, device: AdbDevice, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._name = name
        self._device = device
        self._timeouts = timeouts
        self._connected: AdbHost | None = None
        self._staged: dict[Path, File] = {}  # size and hash of the program and its libraries: read once

    def conditions(self) -> Conditions:
        """See Driver.conditions."""
        return read_adb_conditions(self._host())

    def identify(self) -> Identity:
        """See Driver.identify."""
        return identify_android(self._host())

    def stage(self, artifact: Artifact, say: Say) -> None:
        """See Driver.stage."""
        self._check_format(artifact)
        now = self.conditions()
        if refusal := memory_plan.refusal(artifact.manifest, now, PHONE_SYSTEM_BYTES):
            raise DeviceError(f"device {self._name}: {refusal}")
        if warning := memory_plan.warning(artifact.manifest, now):
            say(f"warning: {warning}")
        self._bring(self._program(), self._remote_program(), say)
        for library in self._libraries():
            self._bring(library, f"{self._remote_libraries()}/{_plain_name(library)}", say)
        stage_artifact(self._host(), artifact, f"{self._device.folder}/artifacts", say)

    def open(self, artifact: Artifact, loading: Loading) -> Opened:
        """See Driver.open."""
        self._check_format(artifact)
        folder = f"{self._device.folder}/artifacts/{artifact.manifest.digest()}"
        libraries = self._remote_libraries()
        # The linker searches it for what the libraries themselves need, such as libc++_shared.so.
        start = ["env", f"LD_LIBRARY_PATH={libraries}", *self._device.prefix, self._remote_program()]
        # Asked in the same way before and after: an emulated agent sees another kernel's id.
        boot_id = self._host().boot_id()
        if self._device.runner == "llama_main":
            return self._open_llama_main(artifact, loading, start, folder, boot_id)
        opened = open_agent(
            self._host(),
            [*start, folder, "--libraries", libraries],
            artifact,
            loading,
            lock=f"{self._device.folder}/agent.lock",
            diagnose=lambda _: self._lost(boot_id) or _ENDED,
        )
        return replace(opened, energy=lambda: phone_meter(self._host()))

    def examine(self) -> Iterator[Finding]:
        """See Driver.examine."""
        device = self._device
        yield from examine_phone(
            self._client(), self._host, self._timeouts,
            serial=device.serial, folder=device.folder, program=device.program, libraries=device.libraries,
        )  # fmt: skip

    def close(self) -> None:
        """See Driver.close."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def _open_llama_main(
        self, artifact: Artifact, loading: Loading, start: Sequence[str], folder: str, boot_id: str
    ) -> Opened:
        from devices.transports.llama_main import open_llama_main

        source = open_llama_main(
            self._host(), start, artifact, folder, loading.threads, loading.wait_s,
            diagnose=lambda: self._lost(boot_id),
        )  # fmt: skip
        return Opened(source=source, finish=source.close, timed=source.time)

    def _client(self) -> Client:
        return Client(self._device.adb, self._device.server)

    def _host(self) -> AdbHost:
        if self._connected is None:
            self._connected = AdbHost(self._device.serial, client=self._client(), timeouts=self._timeouts)
        return self._connected

    def _check_format(self, artifact: Artifact) -> None:
        wanted = _FORMATS[self._device.runner]
        if artifact.manifest.format != wanted:
            advice = (
                'export it with --format onnx; or set runner = "executorch-agent" or "llama_main" in lab.toml'
                if wanted == "onnx"
                else 'set runner = "agent" in lab.toml'
            )
            raise DeviceError(
                f"device {self._name}: its runner {self._device.runner} runs the format {wanted}, and the artifact's "
                f"is {artifact.manifest.format}; {advice}"
            )

    def _program(self) -> Path:
        if self._device.program is None:
            raise DeviceError(
                f"device {self._name}: lab.toml has no program; build the native agent (runtimes/native/README.md) and "
                'name it: program = "build-android/phi-edge-agent"'
            )
        return self._file(self._device.program)

    def _libraries(self) -> list[Path]:
        if not self._device.libraries and self._device.runner == "agent":
            raise DeviceError(
                f"device {self._name}: lab.toml has no libraries; name libonnxruntime.so and libonnxruntime-genai.so "
                "for arm64-v8a: libraries = [...] (docs/android.md says where they are)"
            )
        return [self._file(name) for name in self._device.libraries]

    def _file(self, name: str) -> Path:
        path = Path(name).expanduser()
        if not path.is_file():
            raise DeviceError(f"device {self._name}: {path} is not a file; correct it in lab.toml")
        return path

    def _described(self, path: Path) -> File:
        if path not in self._staged:
            self._staged[path] = describe(path)
        return self._staged[path]

    def _remote_program(self) -> str:
        program = self._program()
        return f"{self._device.folder}/programs/{self._described(program).sha256}/{program.name}"

    def _remote_libraries(self) -> str:
        """A folder for this very set: libraries of two versions must not be mixed."""
        known = hashlib.sha256()
        for library in self._libraries():
            known.update(f"{_plain_name(library)} {self._described(library).sha256}\n".encode())
        return f"{self._device.folder}/libraries/{known.hexdigest()}"

    def _bring(self, local: Path, remote: str, say: Say) -> None:
        """A file whose folder's name is its hash: if it is there, it is complete."""
        host = self._host()
        if host.run(["test", "-f", remote], deadline_s=self._timeouts.command_s).exit_code == 0:
            return
        push_file(host, local, remote, self._described(local), say)
        host.run(["chmod", "755", remote], deadline_s=self._timeouts.command_s).checked(f"making {remote} executable")

    def _lost(self, boot_id: str) -> str | None:
        """Is the device gone, or was it restarted? None if neither, as far as it can be seen now."""
        limit_s = self._timeouts.diagnose_s
        hurried = replace(self._timeouts, connect_s=min(limit_s, self._timeouts.connect_s), command_s=limit_s)
        try:
            now = AdbHost(self._device.serial, client=self._client(), timeouts=hurried).boot_id()
        except TransportError as error:
            return f"the device cannot be reached any more ({error.message})"
        return "the device was restarted in between (its boot id changed)" if restarted(boot_id, now) else None


def _plain_name(library: Path) -> str:
    """libonnxruntime.so for libonnxruntime.so.1.32.0: the name that the agent loads."""
    return library.name.partition(".so")[0] + ".so"


ADB = Transport(
    row=AdbDevice,
    driver=AdbDriver,
    program=Program(name="adb", purpose="Android devices", version="version", fix="sudo apt-get install adb"),
)
