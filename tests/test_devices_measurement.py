"""The measurement file: the same back, strict, whole or not there; and what makes a measurement invalid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from devices.errors import MeasurementError
from devices.measure.measurement import Measurement, Run, read_measurement, sha256_ids
from devices.measure.validity import doubts, problems
from fakes.measurement import fake_measurement


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.json"
    path.write_text(fake_measurement().to_json())
    return path


def test_what_was_written_is_read(file: Path) -> None:
    assert read_measurement(file).to_json() == fake_measurement().to_json()
    assert [path.name for path in file.parent.iterdir()] == ["m.json"]


def test_lists_of_numbers_take_one_line(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert sum('"token_at_s": [0.05' in line and line.rstrip(",").endswith("]") for line in lines) == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema 2; this version reads measurements of schema 1"),
        ({"repetitions": []}, "has no repetitions"),
        ({"artefact": 1}, "unknown key 'artefact' (did you mean 'artifact'?)"),
        ({"versions": {"python": 3}}, "versions.python: expected str, saw 3"),
        ({"device": {"name": "x"}}, "device: lacks 'transport'"),
        ({"workload": None}, "workload: expected a table of Workload"),
    ],
)
def test_a_wrong_file_is_refused(file: Path, change: dict[str, Any], said: str) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(MeasurementError) as error:
        read_measurement(file)
    assert said in str(error.value)


def test_half_a_file_is_refused(file: Path) -> None:
    file.write_text(file.read_text()[:500])
    with pytest.raises(MeasurementError, match="is not JSON"):
        read_measurement(file)


def test_a_failed_write_leaves_the_old_file(file: Path) -> None:
    before = file.read_text()
    endless = dataclasses.replace(fake_measurement(), versions={"x": float("nan")})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="not JSON compliant"):
        file.write_text(endless.to_json())
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == ["m.json"]


def change_run(measurement: Measurement, number: int, run: Run) -> Measurement:
    repetitions = list(measurement.repetitions)
    repetitions[number] = dataclasses.replace(repetitions[number], run=run)
    return dataclasses.replace(measurement, repetitions=repetitions)


def test_a_good_measurement_has_no_problem() -> None:
    assert problems(fake_measurement()) == []


def test_other_tokens_make_it_nondeterministic() -> None:
    measurement = fake_measurement()
    ids = [7] * 16
    other = dataclasses.replace(measurement.repetitions[2].run, token_ids=ids, token_ids_sha256=sha256_ids(ids))
    assert problems(change_run(measurement, 2, other)) == [
        "nondeterministic: greedy token ids of repetition 3 differ from repetition 1's"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finish": "eos"}, "repetition 1: measured request finished with 'eos', not at its length"),
        ({"completion_tokens": 3}, "repetition 1: measured request generated 3 of 16 tokens"),
        (
            {"prefilled_tokens": 1, "reused_tokens": 31},
            "repetition 1: measured request prefilled 1 of 32 prompt tokens",
        ),
        ({"token_ids_sha256": "0"}, "repetition 1: measured request: its token ids do not match"),
    ],
)
def test_another_amount_of_work_invalidates(change: dict[str, Any], said: str) -> None:
    measurement = fake_measurement()
    found = problems(change_run(measurement, 0, dataclasses.replace(measurement.repetitions[0].run, **change)))
    assert any(problem.startswith(said) for problem in found)


def test_swap_and_a_restart_invalidate() -> None:
    measurement = fake_measurement()
    run = measurement.repetitions[0].run
    swapped = change_run(
        measurement, 0, dataclasses.replace(run, memory=dataclasses.replace(run.memory, swap_bytes=4096))
    )
    assert any("4096 bytes of the process were swapped out" in problem for problem in problems(swapped))
    restarted = dataclasses.replace(measurement, after=dataclasses.replace(measurement.after, boot_id="another"))
    assert any("restarted" in problem for problem in problems(restarted))


def test_a_busy_device_is_doubtful_and_an_unknown_one_is_not() -> None:
    measurement = fake_measurement()
    busy = dataclasses.replace(measurement, before=dataclasses.replace(measurement.before, busy_share=0.5))
    unknown = dataclasses.replace(measurement, before=dataclasses.replace(measurement.before, busy_share=None))
    assert doubts(measurement) == doubts(unknown) == []
    assert doubts(busy) == ["the device was busy before it began (50% of its cores' time); close other programs"]
    assert problems(busy) == []
