"""What can tell how much energy this machine uses: counters, a battery, sensors, a power chip; files of the kernel.

Intel and AMD processors count the energy of their packages (RAPL: no disk, no screen). A laptop or a phone on its
battery reports current and voltage of all it has, INA sensors those of what they are soldered to, a Raspberry Pi 5's
power chip those of its rails (without what hangs on its USB ports). Nothing is guessed: None where a machine cannot
tell, and while it charges.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

VCGENCMD_S = 2.0
Power = Callable[[], float | None]  # watts, now


class Sum(Protocol):
    """A sum that grows with each look."""

    source: str  # what tells it, and of what
    by_samples: bool  # of power: then only frequent looks make a good sum

    def look(self) -> float | None:
        """Joules since the first look; None from the first one on at which the machine cannot tell."""
        ...


def find_sum(root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> Sum | None:
    """The best that this machine has; `root` is where /sys is."""
    if _counters(root):
        return Counted(root)
    found = _find_power(root)
    return None if found is None else Sampled(*found, clock)


class Counted:
    """See Sum. The processor packages' own counters."""

    source = "RAPL, packages"
    by_samples = False

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last: dict[Path, int] | None = None
        self._joules: float | None = 0.0

    def look(self) -> float | None:
        """See Sum.look."""
        now = _counters(self._root)
        if self._last is not None and self._joules is not None:
            used = _used(self._last, now)
            self._joules = None if used is None else self._joules + used
        self._last = now
        return self._joules


class PowerSum:
    """The joules under samples of power, which are joined by straight lines."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._joules = 0.0

    def add(self, watts: float, at_s: float) -> float:
        """The sum up to this sample, which is later than those before."""
        if self._last is not None:
            self._joules += (at_s - self._last[0]) * (self._last[1] + watts) / 2
        self._last = at_s, watts
        return self._joules


class Sampled:
    """See Sum. Power, at each look."""

    by_samples = True

    def __init__(self, source: str, power: Power, clock: Callable[[], float]) -> None:
        self.source = source
        self._power, self._clock = power, clock
        self._sum: PowerSum | None = PowerSum()

    def look(self) -> float | None:
        """See Sum.look."""
        watts, at_s = self._power(), self._clock()
        if watts is None:
            self._sum = None
        return None if watts is None or self._sum is None else self._sum.add(watts, at_s)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _counters(root: Path) -> dict[Path, int]:
    """Microjoules of each package; what lies within one (cores, memory) has two colons in its name. Most systems let
    only root read them."""
    folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    values = {folder: _number(folder / "energy_uj") for folder in folders if folder.name.count(":") == 1}
    return {folder: value for folder, value in values.items() if value is not None}


def _used(before: dict[Path, int], after: dict[Path, int]) -> float | None:
    """Joules between two looks; a counter begins again behind its range."""
    total = 0
    for folder, first in before.items():
        last = after.get(folder)
        if last is None:
            return None
        if last < first:
            last += _number(folder / "max_energy_range_uj") or 0
        total += last - first
    return total / 1e6 if total >= 0 else None


def _find_power(root: Path) -> tuple[str, Power] | None:
    batteries = (Battery(folder) for folder in sorted((root / "sys/class/power_supply").glob("*")))
    battery = next((each for each in batteries if each.watts() is not None), None)
    if battery is not None:
        return "battery, whole device", battery.watts
    if (sensors := find_sensors(root)) is not None:
        return sensors.source, sensors.watts
    if _pmic_watts() is not None:
        return "power chip, its rails", _pmic_watts
    return None


@dataclass(frozen=True)
class Battery:
    """A folder of /sys/class/power_supply."""

    folder: Path

    def watts(self) -> float | None:
        """What it gives; None for another supply, and while it charges."""
        if _word(self.folder / "type") != "Battery" or _word(self.folder / "status") != "Discharging":
            return None
        if (watts := _number(self.folder / "power_now")) is not None:
            return abs(watts) / 1e6
        current, voltage = _number(self.folder / "current_now"), _number(self.folder / "voltage_now")
        return None if current is None or voltage is None else abs(current) * voltage / 1e12  # phones sign the current


@dataclass(frozen=True)
class Channel:
    """What an INA sensor measures: power, or else voltage and current."""

    label: str
    power_uw: Path | None = None
    voltage_mv: Path | None = None
    current_ma: Path | None = None

    def watts(self) -> float | None:
        """Now."""
        if self.power_uw is not None:
            power = _number(self.power_uw)
            return None if power is None else power / 1e6
        assert self.voltage_mv is not None and self.current_ma is not None
        voltage, current = _number(self.voltage_mv), _number(self.current_ma)
        return None if voltage is None or current is None else voltage * current / 1e6


@dataclass(frozen=True)
class Sensors:
    """INA sensors: Jetsons and many boards have some, and they are sold as meters for others."""

    source: str
    channels: tuple[Channel, ...]

    def watts(self) -> float | None:
        """All of them together; None where one cannot be read."""
        values = [watts for channel in self.channels if (watts := channel.watts()) is not None]
        return sum(values) if len(values) == len(self.channels) else None


def find_sensors(root: Path) -> Sensors | None:
    """The one that measures the board's input (on a Jetson VDD_IN or POM_5V_IN), whose current passes the others too;
    without such a one all of them."""
    channels = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = _word(folder / "name")
        if re.fullmatch("ina[0-9]\\w*", name):
            channels += [each for each in _channels(folder, name) if each.watts() is not None]
    inputs = [channel for channel in channels if channel.label.upper().endswith("_IN")]
    if inputs:
        return Sensors(f"INA sensor, {inputs[0].label}", (inputs[0],))
    return Sensors("INA sensors, what they measure", tuple(channels)) if channels else None


def _channels(folder: Path, name: str) -> list[Channel]:
    """An INA3221 has three, as voltage and current; the others have one, and say its power."""
    if (folder / "power1_input").exists():
        return [Channel(label=_word(folder / "power1_label") or name, power_uw=folder / "power1_input")]
    return [
        Channel(
            label=_word(folder / f"in{number}_label") or name,
            voltage_mv=folder / f"in{number}_input",
            current_ma=folder / f"curr{number}_input",
        )
        for number in (1, 2, 3)
    ]


def _pmic_watts() -> float | None:
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "pmic_read_adc"], capture_output=True, text=True, timeout=VCGENCMD_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_pmic(done.stdout)


def parse_pmic(text: str) -> float | None:
    """Watts of all rails that have both: `VDD_CORE_A current(7)=1.2A` and `VDD_CORE_V volt(15)=0.8V`."""
    amperes = {name: float(value) for name, value in re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", text)}
    volts = {name: float(value) for name, value in re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", text)}
    rails = amperes.keys() & volts.keys()
    return sum(amperes[rail] * volts[rail] for rail in rails) if rails else None
