"""From a row of lab.toml to its driver: the one table of transports, and the functions that look devices up in it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.drivers.adb import ADB
from devices.drivers.browser import BROWSER
from devices.drivers.cloud.driver import ANTHROPIC, OPENAI
from devices.drivers.driver import Driver, Loading, Say, Transport
from devices.drivers.local import LOCAL
from devices.drivers.ssh import SSH
from devices.drivers.windows import WINDOWS_SSH
from devices.lab import Device, Lab, read_lab
from devices.leases.choose import lease_device
from export.artifact import Artifact, open_artifact
from runtimes.engines.engine import ACCELERATED
from runtimes.loop.tokens import TokenRecord, TokenRequest, TokenSource
from runtimes.registry import text_runtime

if TYPE_CHECKING:
    from runtimes.text.runtime import TextRuntime

TRANSPORTS: dict[str, Transport[Any]] = {
    "local": LOCAL,
    "ssh": SSH,
    "windows": WINDOWS_SSH,
    "adb": ADB,
    "browser": BROWSER,
    "anthropic": ANTHROPIC,
    "openai": OPENAI,
}
LAB = Path("lab.toml")


def open_lab(lab: Path | None) -> Lab:
    """The devices of a lab file; None is lab.toml of the current folder, if there is one. Raises LabError."""
    rows = {name: transport.row for name, transport in TRANSPORTS.items()}
    return read_lab(lab or (LAB if LAB.is_file() else None), rows)


def find_device(name: str, lab: Path | None) -> Device:
    """The device of this name. Raises LabError, which lists the known ones."""
    return open_lab(lab).device(name)


def open_driver(name: str, device: Device) -> Driver:
    """The driver of a device. It connects when it is first asked for something."""
    return TRANSPORTS[device.transport].open(name, device)


def open_device_runtime(
    folder: Path | str,
    name: str,
    *,
    lab: Path | None = None,
    threads: int | None = None,
    say: Say = lambda _: None,
    deadline_s: float = 600.0,
    wait_s: float = 0.0,
) -> TextRuntime:
    """Text in, text out on a device of the lab: staged, loaded, ready, and leased until the runtime is closed.

    `lab` None is lab.toml of the current folder; `threads` None what it says; `say` gets each step, for people;
    `wait_s` is for a device that another job uses. This machine needs no lease: it runs several programs anyway. Raises
    DeviceError, RuntimesError and, for a folder that is not an artifact, export's ArtifactError.
    """
    artifact = open_artifact(Path(folder))
    the_lab = open_lab(lab)
    device = the_lab.device(name)
    with contextlib.ExitStack() as stack:
        if device.key() != LOCAL.row().key():
            job = f"run {artifact.folder.resolve().name}"
            stack.enter_context(lease_device(the_lab, name, job, wait_s=wait_s, say=say))
        driver = stack.enter_context(contextlib.closing(open_driver(name, device)))
        source = _open(artifact, device, driver, threads, say, deadline_s)
        rest = contextlib.ExitStack()
        runtime = text_runtime(artifact, DeviceTokens(source, rest))
        rest.callback(stack.pop_all().close)
        return runtime


def _open(
    artifact: Artifact, device: Device, driver: Driver, threads: int | None, say: Say, deadline_s: float
) -> TokenSource:
    driver.stage(artifact, say)
    say("loading")
    threads = device.threads if threads is None else threads
    opened = driver.open(artifact, Loading(threads=threads, wait_s=deadline_s))
    if artifact.manifest.engine.get("provider") in ACCELERATED and opened.accelerator is None:
        say("warning: the CPU runs this artifact, which was exported for a graphics adapter")
    return opened.source


@dataclasses.dataclass(frozen=True)
class DeviceTokens:
    """A TokenSource whose end also drops the connection, and the lease."""

    source: TokenSource
    rest: contextlib.ExitStack

    def stream(self, request: TokenRequest) -> Generator[TokenRecord, None, None]:
        """See TokenSource.stream."""
        return self.source.stream(request)

    def cancel(self) -> None:
        """See TokenSource.cancel."""
        self.source.cancel()

    def close(self) -> None:
        """See TokenSource.close."""
        try:
            self.source.close()
        finally:
            self.rest.close()
