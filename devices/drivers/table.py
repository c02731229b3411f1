"""From a row of lab.toml to its driver: the one table of transports, and the doors that use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path

from devices.drivers.driver import Driver, Say
from devices.errors import LabError
from devices.lab import AdbDevice, Device, LocalDevice, SshDevice, WindowsDevice, read_lab
from export.artifact import Artifact, open_artifact
from runtimes.api import Event, GenerateRequest, Runtime
from runtimes.registry import text_runtime

LAB = Path("lab.toml")


def _local(name: str, device: Device) -> Driver:
    from devices.drivers.local import LocalDriver

    assert isinstance(device, LocalDevice)
    return LocalDriver(device)


def _ssh(name: str, device: Device) -> Driver:
    from devices.drivers.ssh import SshDriver

    assert isinstance(device, SshDevice)
    return SshDriver(name, device)


def _windows(name: str, device: Device) -> Driver:
    from devices.drivers.windows import WindowsDriver

    assert isinstance(device, WindowsDevice)
    return WindowsDriver(name, device)


def _adb(name: str, device: Device) -> Driver:
    from devices.drivers.adb import AdbDriver

    assert isinstance(device, AdbDevice)
    return AdbDriver(name, device)


DRIVERS: dict[str, Callable[[str, Device], Driver]] = {"local": _local, "ssh": _ssh, "windows": _windows, "adb": _adb}


def find_device(name: str, lab: Path | None) -> Device:
    """The device of this name; `lab` None is lab.toml of this folder where there is one. Raises LabError."""
    return read_lab(lab or (LAB if LAB.is_file() else None)).device(name)


def open_driver(name: str, device: Device) -> Driver:
    """The behaviour to a row. It connects when it is first asked for something. Raises LabError."""
    if device.transport not in DRIVERS:
        raise LabError(f"device {name}: no driver for transport {device.transport!r}; known: {', '.join(DRIVERS)}")
    return DRIVERS[device.transport](name, device)


def open_device_runtime(
    folder: Path, name: str, *, lab: Path | None, threads: int | None, say: Say, deadline_s: float = 600.0
) -> Runtime:
    """Text in, text out on a device of the lab: staged, loaded, ready. For `phi-edge run --device`."""
    artifact = open_artifact(folder)
    device = find_device(name, lab)
    driver = open_driver(name, device)
    try:
        return _open(artifact, device, driver, threads, say, deadline_s)
    except BaseException:
        driver.close()
        raise


def _open(
    artifact: Artifact, device: Device, driver: Driver, threads: int | None, say: Say, deadline_s: float
) -> Runtime:
    driver.stage(artifact, say)
    say("loading")
    threads = device.threads if threads is None else threads
    opened = driver.open(artifact, threads=threads, hold=False, cold=False, deadline_s=deadline_s)
    if artifact.manifest.engine.get("provider") == "dml" and opened.accelerator is None:
        say("warning: the CPU runs this artifact, which is made for a graphics adapter")
    return DeviceRuntime(text_runtime(artifact, opened.source), driver)


@dataclasses.dataclass(frozen=True)
class DeviceRuntime:
    """A Runtime whose end also drops the connection."""

    runtime: Runtime
    driver: Driver

    def generate(self, request: GenerateRequest) -> Generator[Event, None, None]:
        """See Runtime.generate."""
        return self.runtime.generate(request)

    def close(self) -> None:
        """See Runtime.close."""
        try:
            self.runtime.close()
        finally:
            self.driver.close()
