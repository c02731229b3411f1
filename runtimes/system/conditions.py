"""The state of the machine that a measurement was made on: the fields, and how they are read on this machine.

On Linux all of them are read, on Windows those that need no helper program; elsewhere many are None, never 0.

A phone's conditions are read by devices.drivers.adb_conditions.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from runtimes.system.boot import boot_id
from runtimes.system.cores import available_cores
from runtimes.system.proc import busy_share, parse_cpu_times, parse_loadavg, parse_meminfo, parse_swaps

BUSY_LOOK_S = 0.25
VCGENCMD_S = 5.0
# Types of thermal zones that are in the processor. A trip point ("cpu-hw-trip-0") is a constant.
_PROCESSOR = re.compile(r"(?!.*trip)(?:.* )?(?:cpu|soc|x86_pkg_temp|k10temp|coretemp|vcgencmd)", re.IGNORECASE)
CPUFREQ = "sys/devices/system/cpu/cpu{}/cpufreq/{}"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """One sample of the machine. None where the system does not report it."""

    at: str  # UTC, ISO 8601
    system: str  # "Linux 6.1.0 x86_64"
    boot_id: str | None
    cpu_model: str | None
    logical_cores: int | None
    allowed_cores: int | None  # that this process may run on
    governor: str | None
    frequency_hz: Sequence[int] | None  # of each core, at this moment
    temperature_c: Mapping[str, float] | None  # by thermal zone
    load_average_1min: float | None
    busy_share: float | None  # of all cores' time, during the quarter of a second that this takes
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    swap_total_bytes: int | None
    swap_used_bytes: int | None
    swap_devices: Mapping[str, int] | None = None  # bytes by device; a zram one swaps into compressed memory
    throttled: int | None = None  # a Raspberry Pi's `vcgencmd get_throttled`; its bits: devices.measure.throttling
    thermal_status: int | None = None  # Android's, 0 (none) to 6 (shutdown)
    battery_share: float | None = None  # 0 to 1
    battery_charging: bool | None = None  # a cable or a pad gives it power
    processor_c: float | None = None  # the warmest sensor of its processor: not the battery's, skin's or a charger's


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Read the conditions now. `root` is where /proc and /sys are."""
    return _windows_conditions() if sys.platform == "win32" else _linux_conditions(root)


def _linux_conditions(root: Path) -> Conditions:
    memory, swaps = parse_meminfo(_text(root / "proc/meminfo") or ""), _text(root / "proc/swaps")
    temperatures = _temperatures(root)
    return Conditions(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        boot_id=boot_id(root),
        cpu_model=_cpu_model(root),
        logical_cores=os.cpu_count(),
        allowed_cores=available_cores(),
        governor=_text(root / CPUFREQ.format(0, "scaling_governor")),
        frequency_hz=_frequencies(root),
        temperature_c=temperatures,
        load_average_1min=parse_loadavg(_text(root / "proc/loadavg") or ""),
        busy_share=_busy_share(lambda: parse_cpu_times(_text(root / "proc/stat") or "")),
        memory_total_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        swap_total_bytes=memory.swap_total_bytes,
        swap_used_bytes=memory.swap_used_bytes,
        swap_devices=None if swaps is None else parse_swaps(swaps),
        throttled=_throttled(),
        processor_c=max((c for name, c in (temperatures or {}).items() if _PROCESSOR.match(name)), default=None),
    )


def _windows_conditions() -> Conditions:
    from runtimes.system.windows import win32

    (total_bytes, available_bytes), (battery_share, charging) = win32.machine_memory(), win32.power()
    return Conditions(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.version()} {platform.machine()}",
        boot_id=boot_id(),
        cpu_model=win32.cpu_model(),
        logical_cores=os.cpu_count(),
        allowed_cores=available_cores(),
        governor=None,
        frequency_hz=None,
        temperature_c=None,
        load_average_1min=None,
        busy_share=_busy_share(win32.cpu_times),
        memory_total_bytes=total_bytes,
        memory_available_bytes=available_bytes,
        swap_total_bytes=None,
        swap_used_bytes=None,
        battery_share=battery_share,
        battery_charging=charging,
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _cpuinfo(root: Path, key: str) -> list[str]:
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    return [value.strip() for line in lines for name, _, value in [line.partition(":")] if name.strip() == key]


def _cpu_model(root: Path) -> str | None:
    # An ARM board has no "model name"; its device tree knows the board.
    names = _cpuinfo(root, "model name")
    return names[0] if names else _text(root / "proc/device-tree/model") or platform.processor() or None


def _frequencies(root: Path) -> tuple[int, ...] | None:
    khz = [_text(root / CPUFREQ.format(core, "scaling_cur_freq")) for core in range(os.cpu_count() or 0)]
    known = [int(value) * 1000 for value in khz if value is not None and value.isdigit()]
    if not known:
        known = [round(float(mhz) * 1e6) for mhz in _cpuinfo(root, "cpu MHz")]
    return tuple(known) or None


def _temperatures(root: Path) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        millidegrees = _text(zone / "temp")
        try:
            found[f"{zone.name} {_text(zone / 'type') or ''}".strip()] = int(millidegrees or "") / 1000
        except ValueError:
            continue  # a zone that is switched off has no number
    if celsius := re.search(r"temp=([\d.]+)", _vcgencmd("measure_temp")):
        found["vcgencmd"] = float(celsius[1])
    return found or None


def _throttled() -> int | None:
    bits = re.search(r"throttled=(0x[0-9a-fA-F]+)", _vcgencmd("get_throttled"))
    return int(bits[1], 16) if bits else None


def _vcgencmd(question: str) -> str:
    """What a Raspberry Pi's firmware answers; empty on another machine, or without the right to ask (group video)."""
    program = shutil.which("vcgencmd")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, question], capture_output=True, text=True, timeout=VCGENCMD_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _busy_share(cpu_times: Callable[[], tuple[float, float] | None]) -> float | None:
    # The load average still counts what ended a minute ago; this does not.
    before = cpu_times()
    if before is None:
        return None
    time.sleep(BUSY_LOOK_S)
    return busy_share(before, cpu_times())
