"""Heat and frequency of the device's processor, whenever it was looked at during a measurement."""

from __future__ import annotations

from datetime import datetime

from devices.measure.measurement import Measurement
from runtimes.system.conditions import Conditions

Moment = tuple[float, float | None, float | None]  # seconds since the first look, degrees C, hertz


def moments(measurement: Measurement) -> list[Moment]:
    """In the order of time. Only the warmest sensor and the fastest core count; a look that saw neither is left out."""
    looks = [measurement.before, measurement.after]
    looks += [look for each in measurement.repetitions for look in (each.entered, each.left) if look is not None]
    known = [(at, look) for look in looks if (at := _seconds(look)) is not None]
    began_s = min((at for at, _ in known), default=0.0)
    found = {
        (at - began_s, look.processor_c, max(look.frequency_hz) if look.frequency_hz else None) for at, look in known
    }
    return sorted((each for each in found if each[1:] != (None, None)), key=lambda each: each[0])


def _seconds(look: Conditions) -> float | None:
    try:
        return datetime.fromisoformat(look.at).timestamp()
    except (ValueError, OverflowError):
        return None
