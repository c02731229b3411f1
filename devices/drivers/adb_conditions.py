"""The state of an Android phone, by its own tools: properties, /proc, dumpsys. What it does not tell is None."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from devices.transports.host import Host
from runtimes.system.conditions import Conditions

_MARK = "@phi-edge "
_COMMANDS = {
    "model": "getprop ro.product.manufacturer; getprop ro.product.model; getprop ro.soc.model",
    "android": "getprop ro.build.version.release",
    "system": "uname -srm",
    "boot": "cat /proc/sys/kernel/random/boot_id",
    "memory": "cat /proc/meminfo",
    "swaps": "cat /proc/swaps",
    "load": "cat /proc/loadavg",
    "cores": "nproc --all; nproc",
    "governor": "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "frequency": "cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
    "battery": "dumpsys battery",
    "thermal": "dumpsys thermalservice",
    "busy": "head -n 1 /proc/stat; sleep 0.25; head -n 1 /proc/stat",
}


def read_adb_conditions(host: Host) -> Conditions:
    """One call to the device. Raises TransportError."""
    # `|| :` because a phone may lack a tool or deny a file: that is a None, no failure.
    script = "\n".join(
        f"echo; echo '{_MARK}{name}'; {{ {command}; }} 2>/dev/null || :" for name, command in _COMMANDS.items()
    )
    said = host.run(["sh", "-c", script], deadline_s=host.timeouts.command_s).checked("reading the device's conditions")
    return parse_conditions(said.decode("utf-8", "replace"), datetime.now(UTC))


def parse_conditions(text: str, at: datetime) -> Conditions:
    """What the commands printed, by their marks."""
    pieces = text.split(f"\n{_MARK}")
    said = {name: rest.strip() for name, _, rest in (piece.partition("\n") for piece in pieces[1:])}
    memory = {name: int(kib) * 1024 for name, kib in re.findall(r"(?m)^(\w+):\s+(\d+) kB$", said.get("memory", ""))}
    total, free = memory.get("SwapTotal"), memory.get("SwapFree")
    cores = [int(word) for word in said.get("cores", "").split() if word.isdigit()]
    swaps = re.findall(r"(?m)^(/\S+)\s+\S+\s+(\d+)\s", said.get("swaps", ""))
    frequency = tuple(int(word) * 1000 for word in said.get("frequency", "").split() if word.isdigit())
    status = re.search(r"(?m)^Thermal Status: (\d+)", said.get("thermal", ""))
    battery = dict(re.findall(r"(?m)^\s*([\w ]+): (\S+)$", said.get("battery", "")))
    load = said.get("load", "").split()
    android = said.get("android")
    return Conditions(
        at=at.isoformat(timespec="seconds"),
        system=said.get("system", "") + (f", Android {android}" if android else ""),
        boot_id=said.get("boot") or None,
        cpu_model=" ".join(said.get("model", "").split()) or None,
        logical_cores=cores[0] if cores else None,
        allowed_cores=cores[1] if len(cores) > 1 else None,
        governor=said.get("governor") or None,
        frequency_hz=frequency or None,
        temperature_c=_temperatures(said.get("thermal", ""), battery.get("temperature")) or None,
        load_average_1min=float(load[0]) if load else None,
        busy_share=_busy_share(said.get("busy", "")),
        memory_total_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        swap_total_bytes=total,
        swap_used_bytes=None if total is None or free is None else total - free,
        swap_devices={name: int(kib) * 1024 for name, kib in swaps} or None,
        thermal_status=int(status[1]) if status else None,
        battery_share=int(battery["level"]) / int(battery.get("scale", "100")) if "level" in battery else None,
        battery_charging=_charging(battery),
    )


def _temperatures(thermal: str, battery: str | None) -> dict[str, float]:
    """The HAL's readings. The block "Cached temperatures" is stale; 0, NaN and -3.4e38 mean that there is none."""
    found: dict[str, float] = {}
    current = thermal.partition("Current temperatures from HAL:")[2].partition("Current cooling devices")[0]
    for value, name in re.findall(r"Temperature\{mValue=([^,]+), mType=[^,]+, mName=([^,]+),", current):
        degrees = float(value)
        if math.isfinite(degrees) and degrees != 0.0 and degrees > -100.0:
            found[name] = degrees
    if battery is not None and battery.lstrip("-").isdigit():
        found["battery"] = int(battery) / 10
    return found


def _charging(battery: dict[str, str]) -> bool | None:
    powered = [value for name, value in battery.items() if name.endswith(" powered")]
    return None if not powered else "true" in powered


def _busy_share(text: str) -> float | None:
    looks = [[int(word) for word in line.split()[1:9]] for line in text.splitlines() if line.startswith("cpu ")]
    if len(looks) != 2 or len(looks[0]) != 8 or sum(looks[1]) <= sum(looks[0]):
        return None
    idle = sum(looks[1][3:5]) - sum(looks[0][3:5])
    return 1 - idle / (sum(looks[1]) - sum(looks[0]))
