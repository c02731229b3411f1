"""A Windows machine with Python behind its OpenSSH server. See docs/windows.md."""

from __future__ import annotations

from collections.abc import Iterator

from devices.checks.windows import examine_windows
from devices.drivers.driver import Finding, Say
from devices.drivers.provision import WINDOWS, bring_venv, check_python
from devices.drivers.ssh import SshDriver, config_file
from devices.errors import DeviceError
from devices.lab import WindowsDevice
from devices.transports.windows_host import WindowsHost
from export.artifact import Artifact, Format
from runtimes.engines.engine import ANY_ADAPTER, Graphics


class WindowsDriver(SshDriver):
    """See Driver. What differs from a board: the host, the packages, and the graphics adapter."""

    _memory_hint = "out of memory? the device's Event Viewer tells"

    def __init__(self, name: str, device: WindowsDevice) -> None:
        self._name = name
        self._device = self._windows = device
        self._starter = device.python or device.launcher
        self._host = WindowsHost(device.host, python=self._starter, port=device.port, config=config_file(device.config))
        self._cache: str | None = None
        self._agents = {}

    def examine(self) -> Iterator[Finding]:
        """See Driver.examine."""
        assert isinstance(self._host, WindowsHost)
        yield from examine_windows(self._host, self._windows, self._starter, self._cache_folder, self._code)

    def _cache_folder(self) -> str:
        if self._cache is None:
            check_python(self._host, self._starter, WINDOWS)  # all else is done by it
        return super()._cache_folder()

    def _python(self, cache: str, engine: Format, say: Say) -> str:
        if engine != "onnx":
            raise DeviceError(
                f"device {self._name}: an {engine} artifact has no engine on Windows here; export for --target "
                "windows-directml or cpu"
            )
        if self._windows.python is not None:
            return self._windows.python
        packages, house = self._windows.packages, self._wheelhouse()
        return bring_venv(self._host, cache, packages, house, say, system=WINDOWS, python=self._windows.launcher)

    def _graphics(self, artifact: Artifact) -> Graphics:
        # The row's choice is for the artifacts that have one.
        if artifact.manifest.engine.get("provider") != "dml":
            return ANY_ADAPTER
        return Graphics(adapter=self._windows.adapter, allow_cpu=self._windows.allow_cpu)
