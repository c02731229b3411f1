"""Energy of devices behind a wire: a phone's battery over adb, a board's own sensors over a host, a meter beside it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from devices.energy.board import MODULE, board_meter
from devices.energy.meter import Meter
from devices.energy.phone import COUNTER, SOURCE, parse_watts, phone_meter
from devices.measure.measurement import read_measurement
from devices.transports.adb.devices import Client
from devices.transports.adb.host import AdbHost
from devices.transports.local import LocalHost
from fakes.adbd import FakeAdbd
from fakes.agent import fake_agent
from fakes.phone import BATTERY
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact

BLOCK_S = 1.2
ON_BATTERY = BATTERY.replace("status: 2", "status: 3")


@pytest.fixture
def host(phone: FakeAdbd, adb: Client) -> Iterator[AdbHost]:
    with contextlib.closing(AdbHost(f"127.0.0.1:{phone.port}", client=adb)) as host:
        yield host


def battery(phone: FakeAdbd, status: str, current: int, voltage: int) -> None:
    folder = phone.phone.folder / "sys/class/power_supply/battery"
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"status": status, "current_now": current, "voltage_now": voltage}.items():
        (folder / name).write_text(f"{value}\n")


def dumpsys(phone: FakeAdbd, text: str) -> None:
    (phone.phone.folder / "dump").write_text(text)
    (phone.phone.folder / "bin/dumpsys").write_text(f"#!/bin/sh\ncat {shlex.quote(str(phone.phone.folder))}/dump\n")


def measured(meter: Meter, block_s: float = BLOCK_S) -> tuple[float | None, float]:
    """-> joules, and how long the block took."""
    with meter:
        began_s = time.monotonic()
        time.sleep(block_s)
        took_s = time.monotonic() - began_s
    return meter.joules, took_s


def test_a_phone_s_battery_is_sampled_while_the_request_runs(phone: FakeAdbd, host: AdbHost) -> None:
    battery(phone, "Discharging", -1_250_000, 4_000_000)
    meter = phone_meter(host)
    joules, took_s = measured(meter)
    assert joules == pytest.approx(5.0 * took_s, rel=0.05) and meter.source == SOURCE


def test_a_phone_that_begins_to_charge_tells_nothing(phone: FakeAdbd, host: AdbHost) -> None:
    battery(phone, "Discharging", 1_250_000, 4_000_000)
    with phone_meter(host) as meter:
        time.sleep(BLOCK_S / 2)
        battery(phone, "Charging", 900_000, 4_100_000)
        time.sleep(BLOCK_S)
    assert (meter.joules, meter.source) == (None, None)


@pytest.mark.parametrize(
    ("before", "after", "joules"),
    [
        (ON_BATTERY, ON_BATTERY.replace("3912000", "3892000"), 0.02 * 3600 * 4.213),
        (ON_BATTERY, ON_BATTERY.replace("3912000", "3908000"), None),
        (BATTERY, BATTERY, None),
        ("nothing", "nothing", None),
    ],
    ids=["20 mAh", "4 mAh, too coarse", "on its cable", "no battery service"],
)
def test_a_phone_that_hides_its_battery_s_files_has_a_counter(
    phone: FakeAdbd, host: AdbHost, before: str, after: str, joules: float | None
) -> None:
    dumpsys(phone, before)
    with phone_meter(host) as meter:
        dumpsys(phone, after)
    assert meter.joules == (None if joules is None else pytest.approx(joules))
    assert meter.source == (None if joules is None else COUNTER)


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        (b"Discharging -1250000 4000000", 5.0),
        (b"Discharging 1250 4000000", 5.0),  # a maker who counts in milliamperes
        (b"Full 1250000 4000000", None),
        (b"Discharging 4000000", None),
        (b"", None),
    ],
)
def test_a_battery_s_line(line: bytes, watts: float | None) -> None:
    assert parse_watts(line) == (None if watts is None else pytest.approx(watts))


def test_a_board_tells_what_its_power_chip_says(tmp_path: Path) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho 'VDD_A current(7)=2.0A'\necho 'VDD_V volt(8)=1.5V'\n")
    program.chmod(0o755)
    command = ["env", f"PATH={tmp_path}:{os.environ['PATH']}", sys.executable, "-P", "-m", MODULE]
    meter = board_meter(LocalHost(), command)
    joules, took_s = measured(meter)
    if meter.source != "RAPL, packages":  # where this machine itself counts, its own counters come first
        assert joules == pytest.approx(3.0 * took_s, rel=0.05) and meter.source == "power chip, its rails"


def bench(folder: Path, meter: list[str]) -> Result:
    """Of an answer that takes a second, on a device with this meter beside it."""
    fake_artifact(folder / "artifact")
    row = f"[device.desk]\nagent = {json.dumps(fake_agent(0.05))}\nmeter = {json.dumps(meter)}\n"
    (folder / "lab.toml").write_text(row)
    words = ["--prompt-tokens", "4", "--generate-tokens", "24", "--reps", "1", "--warmup", "0"]
    where = ["--device", "desk", "--lab", str(folder / "lab.toml"), "--out", str(folder / "m.json")]
    return CliRunner().invoke(main, ["bench", str(folder / "artifact"), *words, *where])


def test_a_meter_beside_the_device_is_asked_during_the_request(tmp_path: Path) -> None:
    script = "import time\nwhile True: print(4.25, flush=True); time.sleep(0.1)"
    result = bench(tmp_path, [sys.executable, "-c", script])
    assert result.exit_code == 0, result.output
    (repetition,) = read_measurement(tmp_path / "m.json").repetitions
    assert repetition.run.total_s is not None and repetition.energy_source is not None
    assert repetition.energy_j is not None and repetition.energy_j >= 4.25 * repetition.run.total_s
    assert repetition.energy_source.startswith("meter, ")


@pytest.mark.parametrize(
    ("meter", "said"),
    [
        ([sys.executable, "-c", "print('4.2 W')"], "printed '4.2 W'; a line is a number of watts, such as 4.25"),
        ([sys.executable, "-c", "pass"], "it printed no line"),
        (["/no/such/meter"], "/no/such/meter cannot be started"),
        ([], "meter is an empty list; give a command"),
    ],
    ids=["a unit", "silence", "not there", "empty"],
)
def test_a_meter_that_does_not_work_is_one_line(tmp_path: Path, meter: list[str], said: str) -> None:
    result = bench(tmp_path, meter)
    assert result.exit_code == 2 and not (tmp_path / "m.json").exists()
    assert said in result.stderr and result.stderr.count("\n") == 1
