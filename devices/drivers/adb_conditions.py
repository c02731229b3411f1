"""The conditions of an Android phone, by its own tools: properties, /proc, dumpsys. What it cannot say is None."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from devices.transports.host import Host
from runtimes.system.conditions import Conditions
from runtimes.system.proc import busy_share, parse_cpu_times, parse_loadavg, parse_meminfo, parse_swaps

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
    # `|| :` because a phone may lack a tool or deny a file: then the fact is None, and the rest is still read.
    script = "\n".join(
        f"echo; echo '{_MARK}{name}'; {{ {command}; }} 2>/dev/null || :" for name, command in _COMMANDS.items()
    )
    done = host.run(["sh", "-c", script], deadline_s=host.timeouts.command_s)
    printed = done.checked("reading the device's conditions").decode("utf-8", "replace")
    return parse_conditions(printed, datetime.now(UTC))


def parse_conditions(text: str, at: datetime) -> Conditions:
    """What the commands printed, by their marks."""
    pieces = text.split(f"\n{_MARK}")
    found = {name: rest.strip() for name, _, rest in (piece.partition("\n") for piece in pieces[1:])}
    memory = parse_meminfo(found.get("memory", ""))
    cores = _numbers(found.get("cores", ""))
    frequency = tuple(number * 1000 for number in _numbers(found.get("frequency", "")))
    status = re.search(r"(?m)^Thermal Status: ([0-9]{1,9})$", found.get("thermal", ""))
    battery = dict(re.findall(r"(?m)^\s*([\w ]+): (\S+)$", found.get("battery", "")))
    looks = [parse_cpu_times(line) for line in found.get("busy", "").splitlines() if line.startswith("cpu ")]
    android = found.get("android")
    return Conditions(
        at=at.isoformat(timespec="seconds"),
        system=found.get("system", "") + (f", Android {android}" if android else ""),
        boot_id=found.get("boot") or None,
        cpu_model=" ".join(found.get("model", "").split()) or None,
        logical_cores=cores[0] if cores else None,
        allowed_cores=cores[1] if len(cores) > 1 else None,
        governor=found.get("governor") or None,
        frequency_hz=frequency or None,
        temperature_c=_temperatures(found.get("thermal", ""), battery.get("temperature")) or None,
        load_average_1min=parse_loadavg(found.get("load", "")),
        busy_share=busy_share(looks[0], looks[1]) if len(looks) == 2 else None,
        memory_total_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        swap_total_bytes=memory.swap_total_bytes,
        swap_used_bytes=memory.swap_used_bytes,
        swap_devices=parse_swaps(found.get("swaps", "")) or None,
        thermal_status=int(status[1]) if status else None,
        battery_share=_share(battery.get("level", ""), battery.get("scale", "100")),
        battery_charging=_charging(battery),
        processor_c=max(_from_hal(found.get("thermal", ""), of_type="0").values(), default=None),
    )


def _temperatures(thermal: str, battery: str | None) -> dict[str, float]:
    found = _from_hal(thermal)
    if battery is not None and re.fullmatch("-?[0-9]{1,9}", battery):
        found["battery"] = int(battery) / 10
    return found


def _from_hal(thermal: str, of_type: str | None = None) -> dict[str, float]:
    """The HAL's readings; 0 is the type of a processor's sensors, whatever their names (CPU0, BIG, AP). The block
    "Cached temperatures" is stale; 0, NaN and -3.4e38 mean that there is none."""
    found: dict[str, float] = {}
    current = thermal.partition("Current temperatures from HAL:")[2].partition("Current cooling devices")[0]
    for value, kind, name in re.findall(r"Temperature\{mValue=([^,]+), mType=([^,]+), mName=([^,]+),", current):
        try:
            degrees = float(value)
        except ValueError:
            continue
        if math.isfinite(degrees) and degrees != 0.0 and degrees > -100.0 and of_type in (None, kind):
            found[name] = degrees
    return found


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split() if re.fullmatch("[0-9]{1,15}", word)]


def _share(level: str, scale: str) -> float | None:
    numbers = _numbers(f"{level} {scale}")
    return numbers[0] / numbers[1] if len(numbers) == 2 and numbers[1] else None


def _charging(battery: dict[str, str]) -> bool | None:
    powered = [value for name, value in battery.items() if name.endswith(" powered")]
    return None if not powered else "true" in powered
