"""The gate before a repetition, and what happened to a device within one: by conditions alone, without a clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from devices.drivers.adb_conditions import parse_conditions
from devices.errors import NotReadyError
from devices.measure.measurement import Dropped, Measurement
from devices.measure.readiness import Readiness, unready, wait_until_ready
from devices.measure.validity import doubts, problems
from fakes.measurement import fake_conditions, fake_measurement
from fakes.phone import THERMAL
from runtimes.system.conditions import Conditions


def conditions(**changes: Any) -> Conditions:
    return dataclasses.replace(fake_conditions(), **changes)


@pytest.mark.parametrize(
    ("seen", "below_c", "said"),
    [
        ({}, None, []),
        ({"processor_c": 99.0}, None, []),  # a desktop may be as warm as it likes
        ({"processor_c": 60.0}, 55.0, ["its processor has 60 °C, and 55 are the most"]),
        ({"processor_c": 41.0, "thermal_status": 0}, None, ["its processor has 41 °C, and 40 are the most"]),
        ({"processor_c": 41.0, "thermal_status": 0}, 45.0, []),
        ({"temperature_c": {"battery": 90.0}, "thermal_status": 0}, None, []),
        ({"processor_c": 70.0, "throttled": 0}, None, ["its processor has 70 °C, and 65 are the most"]),
        ({"throttled": 0x50000}, None, []),  # since boot, and over
        ({"throttled": 0x4}, None, ["its firmware slows it down: throttled (cool it)"]),
        ({"thermal_status": 2}, None, ["Android's thermal status is 2"]),
        ({"busy_share": 0.5}, None, ["it is busy (50% of its cores' time); close other programs"]),
        ({"busy_share": None}, None, []),
        ({"battery_share": 0.1, "battery_charging": False}, None, ["its battery has 10%; plug it in"]),
        ({"battery_share": 0.1, "battery_charging": True}, None, []),
    ],
)
def test_what_a_device_must_be(seen: Mapping[str, Any], below_c: float | None, said: list[str]) -> None:
    assert unready(conditions(**seen), below_c) == said


def test_it_is_waited_for_until_the_deadline_and_no_longer() -> None:
    now, heard = [0.0], list[str]()
    looks = iter([conditions(busy_share=0.9), conditions(busy_share=0.8), conditions()])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    gate = Readiness(wait_s=7.0)
    ready = wait_until_ready(lambda: next(looks), gate, heard.append, sleep=sleep, clock=lambda: now[0])
    assert (ready.waited_s, ready.conditions) == (6.0, conditions())
    assert heard[0] == "waiting until it is ready: it is busy (90% of its cores' time); close other programs"
    with pytest.raises(NotReadyError, match=r"was not ready after 7 s: it is busy \(90%"):
        wait_until_ready(lambda: conditions(busy_share=0.9), gate, heard.append, sleep=sleep, clock=lambda: now[0])
    assert now[0] == 13.0


def test_only_the_processor_s_sensors_of_a_phone_count() -> None:
    seen = parse_conditions(f"\n@phi-edge thermal\n{THERMAL}", datetime.now(UTC))
    assert seen.processor_c == 31.5  # not 55, which is cached
    renamed = THERMAL.replace("mType=0, mName=CPU0", "mType=0, mName=BIG").replace("30.25", "77.5")
    assert parse_conditions(f"\n@phi-edge thermal\n{renamed}", datetime.now(UTC)).processor_c == 31.5
    assert parse_conditions("", datetime.now(UTC)).processor_c is None


def changed(number: int, **changes: Any) -> Measurement:
    """A measurement whose every repetition was looked at; one of them is different."""
    measurement = fake_measurement()
    quiet = conditions(throttled=0, thermal_status=0)
    repetitions = [
        dataclasses.replace(each, entered=quiet, left=quiet, versions={"onnxruntime": "1.32.0"})
        for each in measurement.repetitions
    ]
    repetitions[number] = dataclasses.replace(repetitions[number], **changes)
    return dataclasses.replace(measurement, repetitions=repetitions)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        (
            {"left": conditions(throttled=0x40004)},
            ["repetition 3: its firmware slowed it down: throttled (cool it)"],
        ),
        (
            {"left": conditions(thermal_status=2)},
            ["repetition 3: it throttled: Android's thermal status rose from 0 to 2"],
        ),
        (
            {"left": conditions(boot_id="another")},
            ["repetition 3: the device was restarted in the middle (its boot id changed)"],
        ),
        (
            {"versions": {"onnxruntime": "1.33.0"}},
            ["repetition 3 had onnxruntime 1.33.0, and repetition 1 1.32.0"],
        ),
    ],
)
def test_what_happens_within_a_repetition_makes_it_invalid(changes: Mapping[str, Any], said: list[str]) -> None:
    measurement = changed(2, **changes)
    assert problems(measurement) == said
    assert doubts(measurement) == []


def test_a_restart_between_two_repetitions_is_no_fault_of_either() -> None:
    again = conditions(boot_id="another", throttled=0, thermal_status=0)
    measurement = changed(4, entered=again, left=again)
    assert problems(dataclasses.replace(measurement, after=again)) == []


def test_no_verdict_rests_on_dropped_repetitions() -> None:
    dropped = [Dropped(number=1, waited_s=300.0, reason="the device was not ready after 300 s: it is hot")]
    measurement = dataclasses.replace(fake_measurement(), dropped=dropped)
    assert problems(measurement) == [
        "1 of 6 tries were dropped, because the device was not ready in time; the last time: the device was not ready "
        "after 300 s: it is hot"
    ]
