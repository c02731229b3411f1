"""`phi-edge lab run`: every cell ends as a row, and no finished repetition is lost or made twice."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner, Result

from devices.jobs import run as jobs_run
from devices.jobs.store import CellStore
from devices.lab import Lab
from devices.leases.choose import lease_device
from devices.measure.measurement import read_measurement
from devices.measure.validity import doubts, problems
from devices.transports.adb.devices import Client
from fakes.adbd import FakeAdbd
from fakes.agent import fake_agent
from fakes.android import connection
from fakes.pi import EmulatedPi
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact

REPOSITORY = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"}
SMALL = {"prompt_tokens": 9, "generate_tokens": 4}
# A phone's agent for tests: the fake one, without the option that it does not know.
PHONE_AGENT = f"""#!/bin/sh
folder=$1; shift 3
exec {sys.executable} -P {REPOSITORY}/tests/fakes/agent.py "$folder" "$@"
"""
# A job in a process of its own, on a machine that is never idle.
COMMAND = [
    sys.executable,
    "-c",
    "import sys, devices.measure.readiness as readiness; readiness.BUSY_SHARE = 2.0\n"
    "from phi_edge.main import main; main(sys.argv[1:])",
]
CRASHES = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]


class Desk:
    """A folder with two artifacts, a lab file and a plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("a", "b"):
            fake_artifact(folder / name)
        self.out = folder / "night"
        self.lab({"desk": {"agent": fake_agent()}})
        self.plan()

    def lab(self, devices: Mapping[str, Mapping[str, object]]) -> None:
        leases = {"file": str(self.folder / "leases.sqlite")}
        (self.folder / "lab.toml").write_text(tomli_w.dumps({"leases": leases, "device": devices}))

    def plan(self, **keys: object) -> None:
        """Of one artifact on one device without a gate, as the machine that runs the tests is never idle."""
        content: dict[str, object] = {"artifacts": ["a"], "devices": ["desk"], "workload": [SMALL]}
        content |= {"repetitions": 3, "warmups": 0, "ready_s": 0, "retry_s": 0.01}
        (self.folder / "plan.toml").write_text(tomli_w.dumps(content | keys))

    @property
    def words(self) -> list[str]:
        lab = str(self.folder / "lab.toml")
        return ["lab", "run", str(self.folder / "plan.toml"), "--out-dir", str(self.out), "--lab", lab]

    def run(self) -> Result:
        return CliRunner().invoke(main, self.words)

    def states(self) -> list[tuple[str, str, str]]:
        cells = json.loads((self.out / "cells.json").read_text())["cells"]
        return [(cell["artifact"], cell["device"], cell["state"]) for cell in cells]

    def numbers(self, name: str = "a-desk-9x4") -> Counter[str]:
        """How many lines of each kind its file has."""
        lines = [json.loads(line) for line in (self.out / f"{name}.jsonl").read_text().splitlines()]
        return Counter(next(iter(line)) for line in lines)


@pytest.fixture(autouse=True)
def always_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests is busy."""
    monkeypatch.setattr("devices.measure.readiness.BUSY_SHARE", 2.0)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_every_cell_is_measured_and_shown(desk: Desk) -> None:
    desk.plan(artifacts=["a", "b"], workload=[SMALL, SMALL | {"prompt_tokens": 17}], metrics=["itl_p95_s"])
    result = desk.run()
    assert result.exit_code == 0, result.output
    assert desk.states() == [(name, "desk", "measured") for name in "aabb"]
    measurement = read_measurement(desk.out / "b-desk-17x4.json")
    assert problems(measurement) == [] and len(measurement.repetitions) == 3
    assert {repetition.session for repetition in measurement.repetitions} == {0}
    assert all(repetition.entered and repetition.left for repetition in measurement.repetitions)
    header, first, *_ = result.stdout.splitlines()
    assert header.split() == ["artifact", "device", "workload", "state", "itl_p95_s"]
    assert first.split()[:4] == ["a", "desk", "9+4", "measured"] and first.split()[-1] in ("µs", "ms")
    said = [line.partition(": ")[2] for line in result.stderr.splitlines() if line.startswith("b-desk-17x4: ")]
    assert said[0] == "queued" and said[-1] == "measured"
    assert [line.partition(":")[0] for line in said[1:-1]] == [f"repetition {number} of 3" for number in (1, 2, 3)]


def phone_row(desk: Desk, phone: FakeAdbd, adb: Client) -> dict[str, object]:
    """A phone whose agent is the fake one."""
    program = desk.folder / "phone-agent"
    program.write_text(PHONE_AGENT)
    return connection(phone, adb) | {"program": str(program), "libraries": [str(program)]}


def test_devices_work_side_by_side_and_one_machine_does_one_thing_at_a_time(
    desk: Desk, phone: FakeAdbd, adb: Client
) -> None:
    """Two names of this machine share its lease; the phone does not wait for them."""
    row = phone_row(desk, phone, adb)
    desk.lab({"desk": {"agent": fake_agent(0.02)}, "shelf": {"agent": fake_agent(0.02)}, "phone": row})
    desk.plan(devices=["desk", "shelf", "phone"], repetitions=1)
    result = desk.run()
    assert result.exit_code == 0, result.output
    assert desk.states() == [("a", name, "measured") for name in ("desk", "shelf", "phone")]
    heard = [line for line in result.stderr.splitlines() if "measured" in line or "repetition" in line]
    here = [line.partition(":")[0] for line in heard if "phone" not in line]
    assert here == ["a-desk-9x4"] * 2 + ["a-shelf-9x4"] * 2


def test_a_killed_job_goes_on_and_makes_nothing_twice(desk: Desk) -> None:
    desk.plan(artifacts=["a", "b"], repetitions=4, ready_s=600)
    desk.lab({"desk": {"agent": fake_agent(0.05)}})
    kept: list[str] = []
    for least in (3, 5, 9):  # lines of all cells' files: killed in the middle of three different repetitions
        job = subprocess.Popen(
            [*COMMAND, *desk.words], env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        until_s = time.monotonic() + 120
        while len(_lines(desk.out)) < least and job.poll() is None and time.monotonic() < until_s:
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert _lines(desk.out)[: len(kept)] == kept or set(kept) <= set(_lines(desk.out))
        kept = _lines(desk.out)
    assert desk.run().exit_code == 0
    assert set(kept) <= set(_lines(desk.out))
    for name in ("a-desk-9x4", "b-desk-9x4"):
        assert desk.numbers(name)["repetition"] == 4
        measurement = read_measurement(desk.out / f"{name}.json")
        assert len(measurement.repetitions) == 4 and problems(measurement) == []
        sessions = [repetition.session for repetition in measurement.repetitions]
        assert sessions == sorted(sessions)
    finished = {path: path.read_bytes() for path in desk.out.iterdir()}
    assert desk.run().exit_code == 0
    assert {path: path.read_bytes() for path in desk.out.iterdir()} == finished


def _lines(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_a_crash_and_a_refusal_are_rows_and_cost_no_other_cell(desk: Desk) -> None:
    desk.lab(
        {"desk": {"agent": fake_agent()}, "fragile": {"agent": CRASHES}, "remote": {"transport": "ssh", "host": "x"}}
    )
    desk.plan(artifacts=["a"], devices=["fragile", "desk"])
    result = desk.run()
    assert result.exit_code == 2
    assert desk.states() == [("a", "fragile", "crashed"), ("a", "desk", "measured")]
    assert "a-fragile-9x4: crashed: " in result.stdout and "killed by SIGKILL (out of memory?)" in result.stdout
    assert desk.numbers("a-fragile-9x4")["failed"] == 2
    assert result.stderr.splitlines()[-1] == "Error: 1 of 2 cells were not measured; the table says why"


def test_a_device_that_never_answers_is_tried_again_and_then_left_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = {"transport": "ssh", "host": "nobody.invalid", "config": "/dev/null"}
    desk.lab({"desk": {"agent": fake_agent()}, "pi5": away})
    desk.plan(artifacts=["a", "b"], devices=["pi5", "desk"], retries=2, repetitions=1)
    result = desk.run()
    assert result.exit_code == 2
    states = [state for _, _, state in desk.states()]
    assert states == ["away", "quarantined", "measured", "measured"]
    assert "a-pi5-9x4: away: " in result.stderr
    assert "b-pi5-9x4: quarantined: pi5 was left alone: " in result.stdout
    assert desk.numbers("a-pi5-9x4")["failed"] == 3


def test_a_phone_that_is_unplugged_or_restarted_comes_back(desk: Desk, phone: FakeAdbd, adb: Client) -> None:
    """Each fault strikes when the first repetition is stored; what was stored before it is kept."""
    row = phone_row(desk, phone, adb)
    desk.lab({"phone": row})
    desk.plan(devices=["phone"], repetitions=4, retries=20)
    faults: list[Callable[[], object]] = [phone.drop, phone.reboot, phone.phone.kill_all]
    whole = CellStore.repeated

    def repeated(self: CellStore, repetition: Any) -> None:
        whole(self, repetition)
        if faults:
            faults.pop()()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellStore, "repeated", repeated)
        result = desk.run()
    assert result.exit_code == 0, result.output
    assert not faults
    assert desk.states() == [("a", "phone", "measured")]
    assert desk.numbers("a-phone-9x4")["repetition"] == 4
    said = doubts(read_measurement(desk.out / "a-phone-9x4.json"))
    assert any("tries failed and were made again; the last one: " in doubt for doubt in said)


def test_a_device_that_never_becomes_ready_is_a_row(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.measure.readiness.unready", lambda seen, limit: ["its processor has 91 °C"])
    result = desk.run()
    assert result.exit_code == 2
    assert desk.states() == [("a", "desk", "not ready")]
    assert "its processor has 91 °C; it is given up after 3 such waits" in result.stdout
    assert desk.numbers()["dropped"] == 3


def test_a_pass_does_not_rest_on_dropped_repetitions(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([["its processor has 91 °C"], [], [], []])
    monkeypatch.setattr("devices.measure.readiness.unready", lambda seen, limit: next(looks))
    result = desk.run()
    assert (result.exit_code, desk.states()) == (0, [("a", "desk", "invalid")])
    said = "1 of 4 tries were dropped, because the device was not ready in time"
    assert said in result.stdout
    budgets = desk.folder / "budgets.toml"
    budgets.write_text("[[budget]]\nmax_ttft_s = 1000\n")
    judged = CliRunner().invoke(main, ["gate", str(desk.out / "a-desk-9x4.json"), "--budgets", str(budgets)])
    assert judged.exit_code == 1 and said in judged.stdout
    assert said in CliRunner().invoke(main, ["report", str(desk.out / "a-desk-9x4.json"), "--markdown"]).stdout


def test_a_device_that_another_job_uses_is_waited_for_no_longer_than_asked(desk: Desk) -> None:
    from devices.drivers.table import open_lab

    with lease_device(open_lab(desk.folder / "lab.toml"), "desk", "another job"):
        result = CliRunner().invoke(main, [*desk.words, "--wait-s", "0.05"])
    assert (result.exit_code, desk.states()) == (2, [("a", "desk", "in use")])
    assert "waiting for desk, which is in use: another job" in result.stderr


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"devices": ["sofa"]}, "unknown device 'sofa'; known: desk, local"),
        ({"metrics": ["speed"]}, "unknown metric 'speed'; known: load_s, cold_load_s, ttft_s"),
        ({"artefacts": ["a"]}, "unknown key 'artefacts' (did you mean 'artifacts'?)"),
        ({"artifacts": ["c"]}, "c"),
        ({"artifacts": []}, "artifacts is empty; give at least one"),
        ({"artifacts": ["a", "a"]}, "artifacts has 'a' twice"),
        ({"artifacts": ["a", "sub/a"]}, "2 cells would have the name 'a-desk-9x4'; rename an artifact's folder"),
        ({"devices": ["desk", "desk"]}, "devices has 'desk' twice"),
        ({"workload": [{"prompt_tokens": 0}]}, "prompt_tokens is 0; allowed: 1 to 1.04858e+06"),
        ({"workload": {"prompt_tokens": 1}}, "write each workload as a table [[workload]]"),
        ({"workload": [{"prompt": 1}]}, "unknown key 'prompt'"),
        ({"workload": [{"prompt_tokens": 9999}]}, "are more than the artifact's context of 512"),
        ({"repetitions": 0}, "repetitions is 0; allowed: 1 to 1000"),
        ({"repetitions": "3"}, "repetitions: expected int, saw '3'"),
        ({"ready_s": -1}, "ready_s is -1; allowed: 0 to 1e+06"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_plan_is_one_line_before_anything_is_done(desk: Desk, plan: dict[str, object], said: str) -> None:
    (desk.folder / "sub").mkdir()
    fake_artifact(desk.folder / "sub" / "a")
    desk.plan(**plan)
    result = desk.run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not desk.out.exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lines: ['{"schema":9}', *lines[1:]], "has schema 9, and this version knows 1; update phi-edge"),
        (lambda lines: [lines[0], "[]", *lines[2:]], "line 2 is damaged (it is no object); move the file away"),
        (lambda lines: [lines[0], "{", *lines[2:]], "line 2 is damaged"),
        (lambda lines: [lines[0], '{"new":1}', *lines[2:]], "line 2 is damaged (its keys are new)"),
        (lambda lines: [lines[0].replace('"device": "desk"', '"device": "sofa"'), *lines[1:]], "with another device;"),
    ],
    ids=["newer schema", "no object", "no JSON", "unknown line", "another cell"],
)
def test_a_store_that_cannot_be_used_is_one_line_and_stays(
    desk: Desk, spoil: Callable[[list[str]], list[str]], said: str
) -> None:
    desk.plan(repetitions=1)
    assert desk.run().exit_code == 0
    file = desk.out / "a-desk-9x4.jsonl"
    file.write_text("".join(f"{line}\n" for line in spoil(file.read_text().splitlines())))
    before = file.read_bytes()
    result = desk.run()
    assert (result.exit_code, result.stderr.count("Error: ")) == (2, 1)
    assert said in result.stderr.splitlines()[-1]
    assert file.read_bytes() == before


def test_half_a_line_is_dropped(desk: Desk) -> None:
    desk.plan(repetitions=1)
    assert desk.run().exit_code == 0
    file = desk.out / "a-desk-9x4.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    (desk.out / "a-desk-9x4.json").unlink()
    assert desk.run().exit_code == 0
    assert desk.numbers() == {"schema": 1, "session": 2, "repetition": 1, "after": 1}


def test_a_full_disk_is_one_line_and_nothing_is_lost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fsync = [0], os.fsync

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("devices.jobs.store.os.fsync", full)
        result = desk.run()
    assert result.exit_code == 2
    assert "a-desk-9x4.jsonl: cannot be written (No space left on device); what was finished before" in result.stderr
    assert desk.numbers() == {"schema": 1, "session": 1, "repetition": 2}
    assert desk.run().exit_code == 0
    assert desk.numbers()["repetition"] == 3


def test_a_second_job_in_the_same_folder_is_refused(desk: Desk) -> None:
    import fcntl

    desk.out.mkdir()
    with (desk.out / ".lab-run.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = desk.run()
    assert result.exit_code == 2 and "another `lab run` writes into it" in result.stderr


def test_a_bug_in_one_device_s_thread_is_not_swallowed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(jobs_run, "measure_cell", broken)
    assert desk.run().exit_code == 70


def test_an_interrupted_job_gives_its_devices_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from devices.drivers.table import open_lab

    whole = CellStore.repeated

    def repeated(self: CellStore, repetition: Any) -> None:
        whole(self, repetition)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    monkeypatch.setattr(CellStore, "repeated", repeated)
    assert desk.run().exit_code == 130
    lab: Lab = open_lab(desk.folder / "lab.toml")
    with lease_device(lab, "desk", "the next"):
        pass
    assert desk.numbers()["repetition"] == 1


def test_a_row_says_what_its_cell_was(desk: Desk) -> None:
    from devices.drivers.table import open_lab
    from devices.jobs.plan import read_plan

    (cell,) = read_plan(desk.folder / "plan.toml", open_lab(desk.folder / "lab.toml")).cells
    assert cell.name == "a-desk-9x4"
    assert dataclasses.asdict(cell.plan.readiness) == {"wait_s": 0.0, "below_c": None, "poll_s": 3.0}


@pytest.mark.emulated
def test_one_plan_over_this_machine_a_pi_and_a_phone_at_once(
    desk: Desk, tiny_onnx_short: Path, emulated_pi: EmulatedPi, phone: FakeAdbd, adb: Client
) -> None:
    """The job is killed once, the Pi's wire is cut and the phone restarts; then every cell is measured."""
    rows = tomllib.loads(emulated_pi.row())["device"]
    rows |= {"desk": {"agent": fake_agent()}, "phone": phone_row(desk, phone, adb)}
    desk.lab(rows)
    desk.plan(artifacts=[str(tiny_onnx_short)], devices=["desk", "pi5", "phone"], repetitions=2, retries=10)
    job = subprocess.Popen([*COMMAND, *desk.words], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    until_s = time.monotonic() + 300
    while '"repetition"' not in "".join(_lines(desk.out)) and job.poll() is None and time.monotonic() < until_s:
        time.sleep(0.05)
    job.kill()
    job.wait()
    kept = _lines(desk.out)
    faults = {"pi5": emulated_pi.cut, "phone": phone.reboot}
    whole = CellStore.repeated

    def repeated(self: CellStore, repetition: Any) -> None:
        whole(self, repetition)
        for device in [device for device in faults if f"-{device}-" in str(self._path)]:
            faults.pop(device)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellStore, "repeated", repeated)
        result = desk.run()
    assert result.exit_code == 0, result.output
    assert [state for _, _, state in desk.states()] == ["measured"] * 3
    assert set(kept) <= set(_lines(desk.out))
    for name in ("desk", "pi5", "phone"):
        assert desk.numbers(f"{tiny_onnx_short.name}-{name}-9x4")["repetition"] == 2
    shown = CliRunner().invoke(main, ["lab", "list", str(desk.folder / "lab.toml"), "--json"])
    found = {entry["name"]: entry for entry in map(json.loads, shown.stdout.splitlines())}
    assert {name: found[name]["state"] for name in rows} == dict.fromkeys(rows, "ready")
    assert "Fake Phone 1 FK1000" in found["phone"]["identity"]["model"]
    assert found["pi5"]["identity"]["memory_bytes"] > 1e8
