"""An NVIDIA GPU as its management library (NVML) describes it: name, driver, memory in use by all programs.

The table's GPU memory is the peak of that while a check runs, less what was in use before: no other program may use the
GPU meanwhile. Without the library, everything is None.
"""

from __future__ import annotations

import ctypes
from typing import Any

from runtimes.system.memory import Sampling

LIBRARY = "libnvidia-ml.so.1"
TEXT_BYTES = 96
INTERVAL_S = 0.005


class _Memory(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_ulonglong) for name in ("total", "free", "used"))


class Nvml:
    """The first GPU. Raises OSError where the library or the GPU is missing."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL(LIBRARY)
        self._device = ctypes.c_void_p()
        if self._library.nvmlInit_v2() or self._library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device)):
            raise OSError(f"{LIBRARY} finds no GPU")

    def used_bytes(self) -> int:
        """Memory in use now."""
        memory = _Memory()
        self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(memory))
        return int(memory.used)

    def describe(self) -> str:
        """Name and driver."""
        name, driver = (ctypes.create_string_buffer(TEXT_BYTES) for _ in range(2))
        self._library.nvmlDeviceGetName(self._device, name, TEXT_BYTES)
        self._library.nvmlSystemGetDriverVersion(driver, TEXT_BYTES)
        return f"{name.value.decode()}, driver {driver.value.decode()}"


def open_nvml() -> Nvml | None:
    """None where there is no such library, or no GPU."""
    try:
        return Nvml()
    except OSError:
        return None


class PeakGpuMemory(Sampling):
    """`with PeakGpuMemory() as peak: ...; peak.bytes()`: sampled while the block runs."""

    def __init__(self) -> None:
        self._nvml = open_nvml()
        self._before = self._peak = 0 if self._nvml is None else self._nvml.used_bytes()
        super().__init__(self._look, INTERVAL_S)

    def bytes(self) -> int | None:
        """The peak, less what was in use when this was made."""
        return None if self._nvml is None else self._peak - self._before

    def _look(self) -> None:
        if self._nvml is not None:
            self._peak = max(self._peak, self._nvml.used_bytes())
