"""What Windows reports about this process and its machine: psutil, and the registry for what psutil does not read.

For Windows alone; conditions.py, cores.py, boot.py and the agent use it. Memory of the process is memory.py's.
"""

from __future__ import annotations

import time
from typing import Any

import psutil

_SESSION = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
_PROCESSOR = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"


def process_age_s() -> float:
    """Seconds since this process was made, by the system's clock."""
    return time.time() - float(psutil.Process().create_time())


def machine_memory() -> tuple[int, int]:
    """Physical memory, in bytes: total, and available."""
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def cpu_times() -> tuple[float, float]:
    """Idle and total time of all cores since the start, in seconds."""
    times = psutil.cpu_times()
    return times.idle, times.idle + times.system + times.user  # interrupts are part of the system's time


def allowed_cores() -> int:
    """The cores that this process may run on; of its own group of 64, where there are more."""
    return len(psutil.Process().cpu_affinity())


def power() -> tuple[float | None, bool | None]:
    """The battery's charge, 0 to 1, and whether a cable gives power; None where there is no battery."""
    battery = psutil.sensors_battery()
    if battery is None:
        return None, None
    return battery.percent / 100 if battery.percent <= 100 else None, battery.power_plugged  # 255 is "unknown"


def boot_id() -> str | None:
    """Which start of Windows this is: a number that it counts up."""
    value = _registry(_SESSION, "BootId")
    return None if value is None else f"windows-boot-{value}"


def cpu_model() -> str | None:
    """The processor's name."""
    value = _registry(_PROCESSOR, "ProcessorNameString")
    return None if value is None else str(value).strip() or None


def _registry(path: str, name: str) -> object | None:
    import winreg

    reg: Any = winreg  # its names are not there for a type checker on another system
    try:
        with reg.OpenKey(reg.HKEY_LOCAL_MACHINE, path) as key:
            return reg.QueryValueEx(key, name)[0]  # type: ignore[no-any-return]
    except OSError:
        return None
