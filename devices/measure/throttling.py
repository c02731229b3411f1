"""The bits of a Raspberry Pi's `vcgencmd get_throttled`, in words."""

from __future__ import annotations

UNDER_VOLTAGE = 0x1
_WORDS = {
    UNDER_VOLTAGE: "under-voltage (use the official power supply and a short cable)",
    0x2: "frequency capped",
    0x4: "throttled (cool it)",
    0x8: "at its soft temperature limit (cool it)",
}
_SINCE_BOOT = 16  # the same bits, shifted: it happened since the last restart, the only thing that clears them


def now(throttled: int) -> list[str]:
    """What the firmware does at this moment."""
    return [word for bit, word in _WORDS.items() if throttled & bit]


def since_boot(throttled: int) -> list[str]:
    """What it did at some time since the device was started."""
    return now(throttled >> _SINCE_BOOT)


def during(before: int, after: int) -> list[str]:
    """What it did between two readings, as far as they show: its state at either, and new bits since boot."""
    return now((before | after) | ((after & ~before) >> _SINCE_BOOT))
