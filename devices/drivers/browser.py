"""A browser of this machine as a device: a real Chromium, driven by Playwright, whose page is the agent."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.drivers.driver import Finding, Loading, Opened, Say, Transport
from devices.drivers.identity import Identity, identity_of
from devices.drivers.local import LocalDevice
from devices.drivers.opening import open_agent
from devices.errors import DeviceError
from devices.lab import Device
from devices.transports.local import LocalHost
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from export.artifact import Artifact
from runtimes.bundle.libraries import WEB_LIBRARIES, library_files
from runtimes.system.conditions import Conditions, read_conditions

AGENT = ("-P", "-m", "devices.transports.browser")
PROGRAMS = ("chromium", "google-chrome", "chrome", "msedge")
PLAYWRIGHT = "pip install 'phi-edge[browser]'"
# Chromium's own software adapter, where there is no graphics adapter: for tests.
SOFTWARE = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan,WebGPU")


@dataclass(frozen=True, kw_only=True)
class BrowserDevice(Device):
    """A Chromium of this machine."""

    transport: Literal["browser"] = "browser"
    program: str | None = None  # its command; None: the first of PROGRAMS that is there
    options: Sequence[str] = ()  # more arguments for it
    software: bool = False  # take the software adapter
    window: bool = False  # show a window: some drivers offer a browser without one no adapter
    libraries: str | None = None  # as `phi-edge bundle --libraries`

    def key(self) -> str:
        """See Device.key: it computes on this machine, as a local device does."""
        return LocalDevice().key()


class BrowserDriver:
    """See devices.drivers.driver.Driver."""

    def __init__(self, name: str, device: BrowserDevice, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._device = device
        self._libraries = None if device.libraries is None else Path(device.libraries)
        self._host = LocalHost(timeouts)

    def conditions(self) -> Conditions:
        """See Driver.conditions."""
        return read_conditions()

    def identify(self) -> Identity:
        """See Driver.identify."""
        return identity_of(self.conditions())

    def stage(self, artifact: Artifact, say: Say) -> None:
        """Refuse what cannot run, and download the libraries. The browser fetches the artifact itself."""
        if artifact.manifest.engine.get("provider") != "webgpu":
            raise DeviceError(
                f"{artifact.folder}: was exported for {artifact.manifest.target}, and a browser needs --target web"
            )
        for finding in self.examine():
            if finding.state == "wrong":
                raise DeviceError(f"{finding.what}: {finding.seen}; {finding.fix}")
        say("bringing the JavaScript libraries")
        library_files(WEB_LIBRARIES, self._libraries)

    def open(self, artifact: Artifact, loading: Loading) -> Opened:
        """See Driver.open."""
        if loading.threads is not None:
            raise DeviceError(
                "threads have no meaning in a browser, where the graphics adapter computes; leave them out"
            )
        device = self._device
        command = [sys.executable, *AGENT, str(artifact.folder), f"--program={self._program()}"]
        options = [*(SOFTWARE if device.software else ()), *device.options]
        command += [f"--option={option}" for option in options]
        command += ["--window"] if device.window else []
        command += [] if self._libraries is None else ["--libraries", str(self._libraries)]
        return open_agent(self._host, command, artifact, loading, here=True)

    def examine(self) -> Iterator[Finding]:
        """Playwright and the browser."""
        if importlib.util.find_spec("playwright") is None:
            yield Finding(what="playwright", state="wrong", seen="not installed", fix=PLAYWRIGHT)
        program = self._program()
        if program is None:
            seen = f"found none of {', '.join(self._programs())}"
            fix = "install Chromium, or set `program` in lab.toml"
            yield Finding(what="browser", state="wrong", seen=seen, fix=fix)
        else:
            yield Finding(what="browser", state="ok", seen=program)

    def close(self) -> None:
        """Nothing is open."""

    def _programs(self) -> Sequence[str]:
        return PROGRAMS if self._device.program is None else (self._device.program,)

    def _program(self) -> str | None:
        """The path of the first that is here."""
        return next((found for name in self._programs() if (found := shutil.which(name))), None)


BROWSER = Transport(row=BrowserDevice, driver=BrowserDriver)
