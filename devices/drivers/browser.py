"""A browser as a device, whose page is the agent: a Chromium of this machine, which Playwright drives, or an Android
phone's Chrome, through its DevTools."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.drivers.adb import phone_key
from devices.drivers.adb_conditions import read_adb_conditions
from devices.drivers.driver import Finding, Loading, Opened, Say, Transport
from devices.drivers.identity import Identity, identify_android, identity_of
from devices.drivers.local import LocalDevice
from devices.drivers.opening import open_agent
from devices.errors import DeviceError
from devices.lab import Device
from devices.transports.adb.devices import Client
from devices.transports.adb.host import AdbHost
from devices.transports.browser.phone import CHROME
from devices.transports.local import LocalHost
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from export.artifact import Artifact
from runtimes.bundle.libraries import WEB_LIBRARIES, library_files
from runtimes.errors import TransportError
from runtimes.system.conditions import Conditions, read_conditions

AGENT = ("-P", "-m", "devices.transports.browser")
PROGRAMS = ("chromium", "google-chrome", "chrome", "msedge")
PLAYWRIGHT = "pip install 'phi-edge[browser]'"
# Chromium's own software adapter, where there is no graphics adapter: for tests.
SOFTWARE = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan,WebGPU")


@dataclass(frozen=True, kw_only=True)
class BrowserDevice(Device):
    """A Chromium of this machine, or an Android phone's Chrome."""

    transport: Literal["browser"] = "browser"
    program: str | None = None  # its command; None: the first of PROGRAMS that is there
    options: Sequence[str] = ()  # more arguments for it
    software: bool = False  # take the software adapter
    window: bool = False  # show a window: some drivers offer a browser without one no adapter
    libraries: str | None = None  # as `phi-edge bundle --libraries`
    serial: str | None = None  # an Android phone's, as `adb devices` lists it
    phone_port: int = 38383  # of the pages on the phone
    adb: str = "adb"  # the client program
    server: str | None = None  # HOST:PORT of the adb server; None: adb's default

    def problem(self) -> str | None:
        """See Device.problem."""
        own = {"program": self.program, "options": self.options, "software": self.software, "window": self.window}
        given = [name for name, value in own.items() if value]
        if self.serial is not None and given:
            return f"{given[0]} is for a browser of this machine, and serial names a phone's; leave one of them out"
        if self.serial is None and (self.server is not None or self.adb != type(self).adb):
            return "adb and server are a phone's; give its serial, too"
        if self.server is not None and self.server.rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            return f"server {self.server}: a phone's browser is reached through an adb server of this machine only"
        return super().problem()

    def key(self) -> str:
        """See Device.key: it computes on this machine, as a local device does, or on the phone."""
        return LocalDevice().key() if self.serial is None else phone_key(self.server, self.serial)


class BrowserDriver:
    """See devices.drivers.driver.Driver."""

    def __init__(self, name: str, device: BrowserDevice, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._device = device
        self._libraries = None if device.libraries is None else Path(device.libraries)
        # A phone removes what the page kept, which may be gigabytes.
        ending = timeouts if device.serial is None else dataclasses.replace(timeouts, end_s=timeouts.command_s)
        self._host = LocalHost(ending)
        self._timeouts = timeouts
        self._connected: AdbHost | None = None

    def conditions(self) -> Conditions:
        """See Driver.conditions."""
        return read_conditions() if self._device.serial is None else read_adb_conditions(self._phone())

    def identify(self) -> Identity:
        """See Driver.identify."""
        return identity_of(self.conditions()) if self._device.serial is None else identify_android(self._phone())

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
        command = [sys.executable, *AGENT, str(artifact.folder)]
        if device.serial is None:
            options = [*(SOFTWARE if device.software else ()), *device.options]
            command += [f"--program={self._program()}", *(f"--option={option}" for option in options)]
            command += ["--window"] if device.window else []
        else:
            command += [f"--serial={device.serial}", f"--phone-port={device.phone_port}", f"--adb={device.adb}"]
            command += [] if device.server is None else [f"--server={device.server}"]
        command += [] if self._libraries is None else ["--libraries", str(self._libraries)]
        return open_agent(self._host, command, artifact, loading, here=True)

    def examine(self) -> Iterator[Finding]:
        """Playwright and the browser."""
        if importlib.util.find_spec("playwright") is None:
            yield Finding(what="playwright", state="wrong", seen="not installed", fix=PLAYWRIGHT)
        if self._device.serial is not None:
            yield from self._examine_phone()
            return
        program = self._program()
        if program is None:
            seen = f"found none of {', '.join(self._programs())}"
            fix = "install Chromium, or set `program` in lab.toml"
            yield Finding(what="browser", state="wrong", seen=seen, fix=fix)
        else:
            yield Finding(what="browser", state="ok", seen=program)

    def close(self) -> None:
        """See Driver.close."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def _examine_phone(self) -> Iterator[Finding]:
        """Whether adb reaches it, and Chrome is installed there."""
        try:
            command = ["pm", "path", CHROME]
            found = self._phone().run(command, deadline_s=self._timeouts.command_s).exit_code == 0
        except TransportError as error:
            yield Finding(what="phone", state="wrong", seen=error.message, fix="see docs/android.md")
            return
        yield Finding(what="phone", state="ok", seen=self._phone().device.model or str(self._device.serial))
        if found:
            yield Finding(what="browser", state="ok", seen=CHROME)
        else:
            yield Finding(
                what="browser", state="wrong", seen=f"no {CHROME}", fix="install Chrome from the phone's store"
            )

    def _phone(self) -> AdbHost:
        if self._connected is None:
            client = Client(self._device.adb, self._device.server)
            self._connected = AdbHost(self._device.serial, client=client, timeouts=self._timeouts)
        return self._connected

    def _programs(self) -> Sequence[str]:
        return PROGRAMS if self._device.program is None else (self._device.program,)

    def _program(self) -> str | None:
        """The path of the first that is here."""
        return next((found for name in self._programs() if (found := shutil.which(name))), None)


BROWSER = Transport(row=BrowserDevice, driver=BrowserDriver)
