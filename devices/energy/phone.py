"""What a phone says about its battery, while it discharges: on a cable the battery's current is not the phone's.

Android lets adb's shell read the battery's own current and voltage on most phones. Where it does not, `dumpsys battery`
has a counter of its charge, which is coarse: then only an answer that takes 10 mAh or more is measured.
"""

from __future__ import annotations

import math
import re
from types import TracebackType

from devices.energy.meter import LineMeter, Meter
from devices.transports.host import Host, LineProcess
from runtimes.errors import TransportError
from runtimes.system.energy.meter import POWER_INTERVAL_S
from runtimes.system.energy.sources import PowerSum

SOURCE = "battery, whole device"
COUNTER = "battery's charge counter, whole device"
_FILES = " ".join(f"/sys/class/power_supply/battery/{name}" for name in ("status", "current_now", "voltage_now"))
# The loop ends with the input, also where the wire breaks: adbd kills nothing.
_LOOP = f"(while echo $(cat {_FILES}); do sleep {POWER_INTERVAL_S}; done) & cat >/dev/null; kill $!"
LEAST_AWAKE_UA = 20_000  # no phone that computes uses less than 0.1 W: a smaller number is of a maker who counts in mA
LEAST_CHARGE_UAH = 10_000  # the counter's steps are up to 1 mAh, a tenth of it
DISCHARGING = 3  # of Android's BatteryManager


def phone_meter(host: Host) -> Meter:
    """The best that it has now. It tells nothing while the phone charges. Raises TransportError."""
    seen = host.run(["sh", "-c", f"echo $(cat {_FILES})"], deadline_s=host.timeouts.command_s)
    if parse_watts(seen.stdout) is not None:
        return LineMeter(lambda: _start(host), BatteryLines())
    return ChargeMeter(host)


def _start(host: Host) -> LineProcess:
    return host.start(["sh", "-c", _LOOP])


def what_tells(host: Host) -> str | None:
    """For doctor. Raises TransportError."""
    meter = phone_meter(host)
    if isinstance(meter, ChargeMeter):
        return None if meter.look() is None else COUNTER
    return SOURCE


def parse_watts(line: bytes) -> float | None:
    """`Discharging -1200000 3900000`: its state, microamperes, which some makers sign, and microvolts."""
    match = re.fullmatch(rb"Discharging -?([0-9]{1,9}) ([0-9]{1,9})", line.strip())
    if match is None:
        return None
    current, voltage = int(match[1]), int(match[2])
    return current * voltage / (1e12 if current >= LEAST_AWAKE_UA else 1e9)


class BatteryLines:
    """See Lines."""

    source: str | None = SOURCE
    optional = True

    def __init__(self) -> None:
        self._sum = PowerSum()

    def joules(self, line: bytes, at_s: float) -> float | None:
        """See Lines.joules. Nobody knows the power of a moment in which it charges, nor the sum from there on."""
        watts = parse_watts(line)
        joules = self._sum.add(math.nan if watts is None else watts, at_s)
        return None if watts is None else joules


class ChargeMeter:
    """See Meter. The charge counter before and after, by the voltage between."""

    def __init__(self, host: Host) -> None:
        self.joules: float | None = None
        self.source: str | None = None
        self._host = host

    def __enter__(self) -> ChargeMeter:
        self._before = self.look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or self._before is None:
            return
        try:
            after = self.look()
        except TransportError:
            return
        if after is not None and (used := self._before[0] - after[0]) >= LEAST_CHARGE_UAH:
            self.joules = used * 3600e-6 * (self._before[1] + after[1]) / 2000
            self.source = COUNTER

    def look(self) -> tuple[int, int] | None:
        """Microampere-hours and millivolts; None where it says neither, and while it charges. Raises TransportError."""
        done = self._host.run(["dumpsys", "battery"], deadline_s=self._host.timeouts.command_s)
        said = dict(re.findall(rb"(?m)^\s*([\w ]+): ([0-9]{1,9})\s*$", done.stdout))
        if int(said.get(b"status", 0)) != DISCHARGING or b"Charge counter" not in said or b"voltage" not in said:
            return None
        return int(said[b"Charge counter"]), int(said[b"voltage"])
