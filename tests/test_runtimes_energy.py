"""Energy by what a machine can tell: counters, a battery, a power chip; from files like the kernel's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from runtimes.system.energy.meter import EnergyMeter
from runtimes.system.energy.sources import find_sensors, parse_pmic

PMIC = """     3V7_WL_SW_A current(0)=0.25000000A
   VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=4.00000000V
 VDD_CORE_V volt(15)=0.75000000V
 EXT5V_V volt(24)=5.10000000V
"""


def counter(root: Path, name: str, energy_uj: int, range_uj: int = 1_000_000_000) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def battery(root: Path, **files: object) -> None:
    folder = root / "sys/class/power_supply/BAT0"
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def test_the_packages_are_added_and_what_is_in_them_is_not(tmp_path: Path) -> None:
    first, second = counter(tmp_path, "intel-rapl:0", 5_000_000), counter(tmp_path, "intel-rapl:1", 999_000_000)
    cores = counter(tmp_path, "intel-rapl:0:0", 1)
    with EnergyMeter(tmp_path) as meter:
        first.write_text("7500000\n")
        second.write_text("500000\n")  # behind its range it begins again
        cores.write_text("2000000\n")
    assert meter.joules == pytest.approx(2.5 + 1.5) and meter.source == "RAPL, packages"


def test_a_counter_that_may_not_be_read_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    counter(tmp_path, "intel-rapl:0", 5).write_text("Permission denied")
    with EnergyMeter(tmp_path) as meter:
        pass
    assert (meter.joules, meter.source) == (None, None)


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        ({"type": "Battery", "status": "Discharging", "current_now": -2_000_000, "voltage_now": 4_000_000}, 8.0),
        ({"type": "Battery", "status": "Discharging", "power_now": 6_000_000}, 6.0),
        ({"type": "Battery", "status": "Charging", "power_now": 6_000_000}, None),
        ({"type": "USB", "status": "Discharging", "power_now": 6_000_000}, None),
        ({"type": "Battery", "status": "Discharging"}, None),
    ],
    ids=["a phone", "a laptop", "charging", "a charger", "a battery that tells nothing"],
)
def test_a_battery_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, object], watts: float | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("runtimes.system.energy.meter.POWER_INTERVAL_S", 0.01)
    battery(tmp_path, **files)
    began_s = time.monotonic()
    with EnergyMeter(tmp_path) as meter:
        time.sleep(0.3)
    if watts is None:
        assert (meter.joules, meter.source) == (None, None)
    else:
        assert meter.joules is not None and meter.source == "battery, whole device"
        assert 0 < meter.joules <= watts * (time.monotonic() - began_s)


def test_the_power_chip_of_a_pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_pmic(PMIC) == pytest.approx(0.25 * 4.0 + 2.0 * 0.75)  # a voltage alone is no power
    assert parse_pmic("") is None
    program = tmp_path / "vcgencmd"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{PMIC}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with EnergyMeter(tmp_path) as meter:
        time.sleep(1.2)
    assert meter.joules is not None and meter.joules > 0 and meter.source == "power chip, its rails"


def sensor(root: Path, number: int, **files: object) -> None:
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def test_sensors_of_a_board_are_added_unless_one_measures_its_input(tmp_path: Path) -> None:
    sensor(tmp_path, 0, name="cpu_thermal", power1_input=99_000_000)
    assert find_sensors(tmp_path) is None
    sensor(tmp_path, 1, name="ina226", power1_input=3_500_000)
    rails = {"in1_label": "VDD_GPU", "in1_input": 5000, "curr1_input": 400}
    sensor(tmp_path, 2, name="ina3221", **rails)
    found = find_sensors(tmp_path)
    assert found is not None and found.watts() == pytest.approx(3.5 + 2.0)
    sensor(tmp_path, 3, name="ina3221", in1_label="VDD_IN", in1_input=5000, curr1_input=1500)
    found = find_sensors(tmp_path)
    assert found is not None and found.watts() == pytest.approx(7.5) and found.source == "INA sensor, VDD_IN"
