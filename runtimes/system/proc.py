"""What Linux writes in /proc, from text to facts.

This machine reads its own files (conditions.py); a phone sends its own over adb (devices.drivers.adb_conditions), and
what it sends may be anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MachineMemory:
    """/proc/meminfo, in bytes; None where it lacks a line."""

    total_bytes: int | None
    available_bytes: int | None
    swap_total_bytes: int | None
    swap_used_bytes: int | None


def parse_meminfo(text: str) -> MachineMemory:
    """/proc/meminfo."""
    bytes_of = {name: int(kib) * 1024 for name, kib in re.findall(r"(?m)^(\w+):\s+([0-9]{1,15}) kB$", text)}
    swap, free = bytes_of.get("SwapTotal"), bytes_of.get("SwapFree")
    return MachineMemory(
        total_bytes=bytes_of.get("MemTotal"),
        available_bytes=bytes_of.get("MemAvailable"),
        swap_total_bytes=swap,
        swap_used_bytes=None if swap is None or free is None else swap - free,
    )


def parse_swaps(text: str) -> dict[str, int]:
    """/proc/swaps: bytes by device."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"(?m)^(/\S+)\s+\S+\s+([0-9]{1,15})\s", text)}


def parse_loadavg(text: str) -> float | None:
    """/proc/loadavg: the average of the last minute."""
    found = re.match(r"\s*([0-9]{1,9}\.[0-9]{1,9})\s", f"{text} ")
    return float(found[1]) if found else None


def parse_cpu_times(text: str) -> tuple[int, int] | None:
    """The first line of /proc/stat: idle and total time of all cores since the start, in ticks."""
    ticks = [int(word) for word in re.findall(r" ([0-9]{1,18})(?= |$)", text.partition("\n")[0])[:8]]
    return (ticks[3] + ticks[4], sum(ticks)) if len(ticks) == 8 else None  # idle and iowait


def busy_share(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    """From two readings of idle and total time; None where no time passed."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return 1 - (after[0] - before[0]) / (after[1] - before[1])
