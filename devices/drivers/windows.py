"""A Windows machine with Python behind its OpenSSH server. See docs/windows.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from devices.checks.windows import examine_windows
from devices.drivers.board import Board, PythonBoardDriver
from devices.drivers.driver import Finding, Transport
from devices.drivers.provision import WINDOWS
from devices.drivers.ssh import OPENSSH, OverSsh
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from devices.transports.windows.host import WindowsHost
from runtimes.engines.engine import Graphics


@dataclass(frozen=True, kw_only=True)
class WindowsDevice(OverSsh):
    """A Windows machine with Python behind its OpenSSH server."""

    transport: Literal["windows"]
    launcher: str = "python"  # what starts Python in the device's shell: a name on its PATH, or a path
    packages: Literal["winml", "directml"] = "winml"  # what the venv gets: Windows ML's, or the frozen DirectML pair
    adapter: str | None = None  # the graphics adapter's number, LUID or a part of its name; None: most memory
    allow_cpu: bool = False  # where there is no adapter, run on the CPU instead of failing


def windows_driver(name: str, device: WindowsDevice, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> PythonBoardDriver:
    """See Transport.driver."""
    host = WindowsHost(
        device.host,
        python=device.python or device.launcher,
        port=device.port,
        config=device.config_file(),
        timeouts=timeouts,
    )
    board = Board(
        name=name,
        address=device.host,
        host=host,
        system=WINDOWS,
        cache=device.cache,
        launcher=device.launcher,
        python=device.python,
        packages={"onnx": device.packages},
        wheelhouse=device.wheels(),
        graphics=Graphics(adapter=device.adapter, allow_cpu=device.allow_cpu),
        memory_hint="the device's Event Viewer shows it",
    )

    def examine(driver: PythonBoardDriver) -> Iterator[Finding]:
        return examine_windows(driver, host)

    return PythonBoardDriver(board, examine)


WINDOWS_SSH = Transport(row=WindowsDevice, driver=windows_driver, program=OPENSSH)
