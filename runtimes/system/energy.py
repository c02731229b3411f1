"""How much energy this machine used during a block, in joules, by what the machine itself can tell.

Intel and AMD processors count the energy of their packages (RAPL: no disk, no screen). A laptop or a phone on its
battery reports current and voltage of all it has, a Raspberry Pi 5's power chip those of its rails (without what hangs
on its USB ports): these are sampled, so a short block is known badly. Nothing is guessed: None where a machine cannot
tell, and while it charges.
"""

from __future__ import annotations

import functools
import itertools
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

POWER_INTERVAL_S = 0.25
LEAST_SAMPLES = 4  # of power: a block of a second
VCGENCMD_S = 2.0
Power = Callable[[], float | None]  # watts, now


class EnergyMeter:
    """`with EnergyMeter() as meter: ...`; then `meter.joules` and `meter.source`, both None where nobody can tell."""

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        """`root` is where /sys is."""
        self.joules: float | None = None
        self.source: str | None = None
        self._root, self._clock = root, clock
        self._stop = threading.Event()
        self._samples: list[tuple[float, float | None]] = []
        self._thread: threading.Thread | None = None
        self._counted: dict[Path, int] = {}

    def __enter__(self) -> EnergyMeter:
        self._counted = _counters(self._root)
        if not self._counted and (found := _find_power(self._root)) is not None:
            self.source, power = found
            self._thread = threading.Thread(target=self._run, args=[power], name="energy-meter", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counted:
            self.joules, self.source = _used(self._counted, _counters(self._root)), "RAPL, packages"
        elif self._thread is not None:
            self._stop.set()
            self._thread.join()
            self.joules = _integral(self._samples)
        if self.joules is None:
            self.source = None

    def _run(self, power: Power) -> None:
        while True:
            watts = power()
            self._samples.append((self._clock(), watts))
            if self._stop.wait(POWER_INTERVAL_S):
                break
        self._samples.append((self._clock(), power()))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


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
    return total / 1e6 if total > 0 else None


def _find_power(root: Path) -> tuple[str, Power] | None:
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        if _battery_watts(folder) is not None:
            return "battery, whole device", functools.partial(_battery_watts, folder)
    if _pmic_watts() is not None:
        return "power chip, its rails", _pmic_watts
    return None


def _battery_watts(folder: Path) -> float | None:
    """What a battery gives; None for another supply, and while it charges."""
    try:
        kind, status = ((folder / name).read_text(encoding="ascii").strip() for name in ("type", "status"))
    except (OSError, ValueError):
        return None
    if kind != "Battery" or status != "Discharging":
        return None
    if (watts := _number(folder / "power_now")) is not None:
        return abs(watts) / 1e6
    current, voltage = _number(folder / "current_now"), _number(folder / "voltage_now")  # phones sign the current
    return None if current is None or voltage is None else abs(current) * voltage / 1e12


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


def _integral(samples: list[tuple[float, float | None]]) -> float | None:
    """Joules under samples of power; None where one is missing, or they are too few."""
    known = [(at, watts) for at, watts in samples if watts is not None]
    if len(known) < max(LEAST_SAMPLES, len(samples)):
        return None
    pairs = itertools.pairwise(known)
    return sum((late - early) * (first + last) / 2 for (early, first), (late, last) in pairs)
