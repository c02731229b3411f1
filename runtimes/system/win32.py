"""What Windows reports about this process and its machine: kernel32 through ctypes, and the registry.

Sources: psapi.h, sysinfoapi.h, winbase.h. For Windows alone; memory.py, conditions.py and the agent use it.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import Any

from runtimes.system.dxgi import GpuMeter

TICK_S = 1e-7  # of a FILETIME
EPOCH_S = 11_644_473_600  # 1601, where a FILETIME counts from, to 1970
UNKNOWN = 255  # of SYSTEM_POWER_STATUS
NO_BATTERY, CHARGING_CABLE = 128, 1
_SESSION = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
_PROCESSOR = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"


@dataclass(frozen=True, kw_only=True)
class ProcessMemory:
    """Of this process, in bytes. What is committed is its own: files mapped into it are in what is resident only."""

    peak_resident_bytes: int  # PeakWorkingSetSize
    resident_bytes: int  # WorkingSetSize
    peak_committed_bytes: int  # PeakPagefileUsage: what was paged out is in it
    committed_bytes: int  # PagefileUsage


@dataclass(frozen=True, kw_only=True)
class Power:
    """SYSTEM_POWER_STATUS. None where there is no battery, or Windows does not know."""

    battery_share: float | None
    charging: bool | None


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("peak_paged_pool", ctypes.c_size_t),
        ("paged_pool", ctypes.c_size_t),
        ("peak_nonpaged_pool", ctypes.c_size_t),
        ("nonpaged_pool", ctypes.c_size_t),
        ("pagefile", ctypes.c_size_t),
        ("peak_pagefile", ctypes.c_size_t),
    )


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("total_commit", ctypes.c_uint64),
        ("available_commit", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended", ctypes.c_uint64),
    )


class _PowerStatus(ctypes.Structure):
    """SYSTEM_POWER_STATUS."""

    _fields_ = (
        ("cable", ctypes.c_uint8),
        ("battery", ctypes.c_uint8),
        ("percent", ctypes.c_uint8),
        ("saver", ctypes.c_uint8),
        ("life_s", ctypes.c_uint32),
        ("full_life_s", ctypes.c_uint32),
    )


def process_memory() -> ProcessMemory | None:
    """By GetProcessMemoryInfo (4 us); None where it fails."""
    counters = _ProcessMemory(size=ctypes.sizeof(_ProcessMemory))
    kernel = _kernel32()
    if not kernel.K32GetProcessMemoryInfo(_this_process(kernel), ctypes.byref(counters), counters.size):
        return None
    return ProcessMemory(
        peak_resident_bytes=counters.peak_working_set,
        resident_bytes=counters.working_set,
        peak_committed_bytes=counters.peak_pagefile,
        committed_bytes=counters.pagefile,
    )


def process_age_s() -> float | None:
    """Seconds since this process was made, by the system's clock."""
    kernel, times = _kernel32(), [ctypes.c_uint64() for _ in range(4)]
    if not kernel.GetProcessTimes(_this_process(kernel), *map(ctypes.byref, times)):
        return None
    return time.time() - (times[0].value * TICK_S - EPOCH_S)


def machine_memory() -> tuple[int, int] | None:
    """Physical memory, in bytes: total, and available."""
    status = _MemoryStatus(size=ctypes.sizeof(_MemoryStatus))
    if not _kernel32().GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return status.total, status.available


def cpu_times() -> tuple[int, int] | None:
    """Idle and total time of all cores since the start, in ticks."""
    idle, kernel, user = (ctypes.c_uint64() for _ in range(3))
    if not _kernel32().GetSystemTimes(ctypes.byref(idle), ctypes.byref(kernel), ctypes.byref(user)):
        return None
    return idle.value, kernel.value + user.value  # the kernel's time includes the idle time


def allowed_cores() -> int | None:
    """The cores that this process may run on; of its own group of 64, where there are more."""
    kernel, own, all_ = _kernel32(), ctypes.c_size_t(), ctypes.c_size_t()
    if not kernel.GetProcessAffinityMask(_this_process(kernel), ctypes.byref(own), ctypes.byref(all_)):
        return None
    return own.value.bit_count() or None


def power() -> Power:
    """The battery, and whether a cable gives power."""
    status = _PowerStatus()
    if not _kernel32().GetSystemPowerStatus(ctypes.byref(status)) or status.battery in (UNKNOWN, NO_BATTERY):
        return Power(battery_share=None, charging=None)
    return Power(
        battery_share=None if status.percent == UNKNOWN else status.percent / 100,
        charging=None if status.cable == UNKNOWN else status.cable == CHARGING_CABLE,
    )


def boot_id() -> str | None:
    """Which start of Windows this is: a number that it counts up."""
    value = _registry(_SESSION, "BootId")
    return None if value is None else f"windows-boot-{value}"


def cpu_model() -> str | None:
    """The processor's name."""
    value = _registry(_PROCESSOR, "ProcessorNameString")
    return None if value is None else str(value).strip() or None


class WindowsMeter:
    """Memory of this process, on the host and on all graphics adapters, taken often: the adapters are held open."""

    def __init__(self) -> None:
        self._gpu = GpuMeter()

    def read(self) -> tuple[ProcessMemory, tuple[int, int] | None] | None:
        """The host's, and the GPUs' own and shared bytes; see GpuMeter.usage."""
        host = process_memory()
        return None if host is None else (host, self._gpu.usage())


def _registry(path: str, name: str) -> object | None:
    import winreg

    reg: Any = winreg  # its names are not there for a type checker on another system
    try:
        with reg.OpenKey(reg.HKEY_LOCAL_MACHINE, path) as key:
            return reg.QueryValueEx(key, name)[0]  # type: ignore[no-any-return]
    except OSError:
        return None


def _kernel32() -> Any:
    # On 64-bit Windows there is one calling convention, and CDLL is there on every system.
    return ctypes.CDLL("kernel32")


def _this_process(kernel: Any) -> ctypes.c_void_p:
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    return ctypes.c_void_p(kernel.GetCurrentProcess())
