"""Leases, in SQLite's file and with labgrid's coordinator: two jobs never share a device; what crashed is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner

from devices.drivers.table import open_lab
from devices.errors import LabError, LeaseError, LeaseLostError
from devices.lab import Lab
from devices.leases import sqlite
from devices.leases.choose import lease_device, lease_key, open_store
from devices.leases.labgrid import LabgridStore, _Session
from devices.leases.lease import LeaseTimes, leased
from devices.leases.process import has_ended, identity
from devices.leases.sqlite import SqliteStore
from devices.transports.adb.devices import Client, call_adb
from fakes.adbd import FakeAdbd
from fakes.agent import fake_agent
from fakes.android import connection
from fakes.labgrid_lab import LabgridLab
from fakes.phone import FakePhone
from phi_edge.main import main
from runtimes.engines.fake import fake_artifact

REPOSITORY = Path(__file__).parent.parent
HARNESS = [sys.executable, "-P", str(REPOSITORY / "tests/fakes/harness.py")]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"}
DEVICES = ["pi5", "phone"]


@pytest.fixture(scope="module")
def labgrid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabgridLab]:
    with LabgridLab(tmp_path_factory.mktemp("labgrid"), DEVICES) as lab:
        yield lab


@pytest.fixture(params=["sqlite", "labgrid"])
def lab_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A lab with two devices whose leases are in a file, or with labgrid."""
    file = tmp_path / "lab.toml"
    if request.param == "sqlite":
        leases = f"[leases]\nfile = {json.dumps(str(tmp_path / 'leases.sqlite'))}\n"
        places = [""] * 2
    else:
        leases = f'[leases]\ncoordinator = "{request.getfixturevalue("labgrid").coordinator}"\n'
        places = [f'place = "{name}"\n' for name in DEVICES]
    rows = [
        f'[device.{name}]\ntransport = "ssh"\nhost = "{name}.invalid"\n{place}'
        for name, place in zip(DEVICES, places, strict=True)
    ]
    file.write_text(leases + "".join(rows))
    return file


@pytest.fixture
def lab(lab_file: Path) -> Lab:
    return open_lab(lab_file)


def in_file(folder: Path) -> Lab:
    """A lab whose one device is this machine, with leases in leases.sqlite of that folder."""
    (folder / "lab.toml").write_text(f"[leases]\nfile = {json.dumps(str(folder / 'leases.sqlite'))}\n")
    return open_lab(folder / "lab.toml")


def test_two_harnesses_never_overlap_on_a_device(lab_file: Path, tmp_path: Path) -> None:
    """200 jobs: 50 of each harness on each device."""
    command = [*HARNESS, str(lab_file), str(tmp_path), "50", *DEVICES]
    harnesses = [subprocess.Popen(command, env=ENVIRONMENT) for _ in range(2)]
    assert [harness.wait(timeout=300) for harness in harnesses] == [0, 0]
    for device in DEVICES:
        assert (tmp_path / device).read_text().split() == ["alone"] * 100


def test_a_device_in_use_is_refused_with_who_has_it_and_free_afterwards(lab: Lab) -> None:
    with lease_device(lab, "pi5", "bench a"):
        refused = r"device pi5 is in use: bench a \(process \d+ on .*, since 20"
        with pytest.raises(LeaseError, match=refused), lease_device(lab, "pi5", "bench b"):
            pass
        with lease_device(lab, "phone", "bench b"):
            pass
    with lease_device(lab, "pi5", "bench b"):
        pass


def test_the_one_that_waits_learns_for_whom(lab: Lab) -> None:
    heard: list[str] = []
    with (
        lease_device(lab, "pi5", "bench a"),
        pytest.raises(LeaseError, match=r"in use after 0\.05 s"),
        lease_device(lab, "pi5", "bench b", wait_s=0.05, say=heard.append, times=LeaseTimes(poll_s=0.01)),
    ):
        pass
    assert len(heard) == 1 and heard[0].startswith("waiting for pi5, which is in use: bench a (process ")


def test_the_lease_of_a_harness_that_was_killed_is_taken_over(lab: Lab, lab_file: Path) -> None:
    crashed = subprocess.Popen([*HARNESS, "--crash", str(lab_file), "pi5"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert crashed.stdout is not None and crashed.stdout.readline() == b"taken\n"
    with pytest.raises(LeaseError, match="a job that crashes"), lease_device(lab, "pi5", "the next"):
        pass
    crashed.kill()
    crashed.communicate()
    with lease_device(lab, "pi5", "the next", wait_s=120, times=LeaseTimes(dead_s=0.3, poll_s=0.05)):
        pass


def test_a_harness_that_was_suspended_learns_that_it_lost_its_lease(lab: Lab, lab_file: Path) -> None:
    """Its beats are stopped like those of a laptop that sleeps; another job takes over; then it goes on."""
    quick = LeaseTimes(beat_s=1000.0, dead_s=0.3, poll_s=0.05)
    store = open_store(lab, lab.device("pi5"), quick)
    with (
        leased(store, lease_key(lab.device("pi5")), "pi5", "one that sleeps", times=quick) as lease,
        lease_device(lab, "pi5", "the next", wait_s=120, times=quick),
        pytest.raises(LeaseLostError, match="the last repetition does not count"),
    ):
        lease.check()
    store.close()


def test_only_its_own_job_keeps_a_lease_alive_or_gives_it_back(lab: Lab) -> None:
    store = open_store(lab, lab.device("pi5"))
    key = lease_key(lab.device("pi5"))
    assert store.take(key, "one", "a job") is None
    assert store.beat(key, "one") and not store.beat(key, "other")
    store.release(key, "other")
    assert [each.device for each in store.held()] == [key]
    store.release(key, "one")
    assert store.held() == []
    store.close()


def test_a_person_who_has_acquired_a_place_is_never_taken_for_dead(labgrid: LabgridLab, tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text(
        f'[leases]\ncoordinator = "{labgrid.coordinator}"\n[device.pi5]\ntransport = "ssh"\nhost = "a"\nplace = "pi5"\n'
    )
    lab = open_lab(tmp_path / "lab.toml")
    labgrid.client("-p", "pi5", "acquire")
    try:
        dead_at_once = LeaseTimes(dead_s=0.0, poll_s=0.01)
        with (
            pytest.raises(LeaseError, match="by labgrid"),
            lease_device(lab, "pi5", "job", wait_s=0.2, times=dead_at_once),
        ):
            pass
    finally:
        labgrid.client("-p", "pi5", "release")


def test_a_job_that_was_faster_and_has_ended_is_no_error(labgrid: LabgridLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place after we saw it free, and releases it before we ask who has it."""
    with (
        contextlib.closing(LabgridStore(labgrid.coordinator)) as faster,
        contextlib.closing(LabgridStore(labgrid.coordinator)) as slower,
    ):
        asked, place = [], _Session.place

        def between(self: _Session, name: str) -> object:
            asked.append(name)
            if len(asked) == 2:
                monkeypatch.setattr(_Session, "place", place)
                faster.release("pi5", "one")
            seen = place(self, name)
            if len(asked) == 1:
                monkeypatch.setattr(_Session, "place", place)
                assert faster.take("pi5", "one", "the faster job") is None
                monkeypatch.setattr(_Session, "place", between)
            return seen

        monkeypatch.setattr(_Session, "place", between)
        assert slower.take("pi5", "two", "the slower job") is None
        assert len(asked) == 2
        slower.release("pi5", "two")


def test_a_coordinator_that_was_restarted_has_released_every_place(tmp_path: Path) -> None:
    """The job that had a place learns it, and the same connection takes it again."""
    with LabgridLab(tmp_path, ["pi5"]) as labgrid:
        store = LabgridStore(labgrid.coordinator)
        with leased(store, "pi5", "pi5", "one", times=LeaseTimes(beat_s=0.05)) as lease:
            labgrid.restart()
            until_s = time.monotonic() + 120
            with pytest.raises(LeaseLostError):
                while time.monotonic() < until_s:
                    lease.check()
                    time.sleep(0.01)
        with leased(store, "pi5", "pi5", "two"):
            pass
        store.close()


@pytest.mark.parametrize(
    ("coordinator", "place", "said"),
    [
        ("127.0.0.1:1", "pi5", "labgrid's coordinator 127.0.0.1:1 did not do it: no answer; check that it runs"),
        (None, "sofa", "has no place 'sofa'; known: phone, pi5; make it with `labgrid-client -p sofa create`"),
    ],
)
def test_labgrid_s_refusals_are_one_line(
    labgrid: LabgridLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coordinator: str | None, place: str, said: str
) -> None:
    monkeypatch.setattr("devices.leases.labgrid.CALL_S", 2.0)
    (tmp_path / "lab.toml").write_text(
        f'[leases]\ncoordinator = "{coordinator or labgrid.coordinator}"\n'
        f'[device.a]\ntransport = "ssh"\nhost = "a"\nplace = "{place}"\n'
    )
    with pytest.raises(LeaseError) as error, lease_device(open_lab(tmp_path / "lab.toml"), "a", "job"):
        pass
    assert said in str(error.value) and "\n" not in str(error.value)


def test_two_that_make_the_file_at_once_wait_for_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says at once that the file is locked, where two connections would wait for each other for ever."""
    make, asked = SqliteStore._create, []

    def locked_at_first(store: SqliteStore, rows: sqlite3.Connection) -> None:
        asked.append(store)
        if len(asked) == 1:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        make(store, rows)

    monkeypatch.setattr(SqliteStore, "_create", locked_at_first)
    assert SqliteStore(tmp_path / "leases.sqlite").take("desk", "token", "job") is None
    assert len(asked) == 2


def test_a_beat_waits_for_no_disk(tmp_path: Path) -> None:
    """A flush can take longer than `dead_s` beside an export that writes gigabytes."""
    store = SqliteStore(tmp_path / "leases.sqlite")
    assert store.take("desk", "token", "job") is None
    with store._transaction() as rows:
        assert rows.execute("PRAGMA synchronous").fetchone()[0] == 0


def test_a_clock_that_jumps_ends_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = in_file(tmp_path)
    with lease_device(lab, "local", "one"):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        with pytest.raises(LeaseError, match="in use: one"), lease_device(lab, "local", "other"):
            pass


def test_the_leases_before_a_restart_are_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "leases.sqlite")
    assert store.take("pi5", "token", "one") is None
    monkeypatch.setattr(sqlite, "boot_id", lambda: "another")
    assert store.held() == []
    assert store.take("pi5", "other", "two") is None
    assert not store.beat("pi5", "token")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: _execute(file, "PRAGMA user_version = 9"), "has schema 9, and this version knows 1; update phi-"),
        (lambda file: file.write_bytes(b"no database" * 500), "leases cannot be kept there (file is not a database)"),
        (lambda file: _execute(file, "DROP TABLE lease"), "leases cannot be kept there (no such table: lease)"),
    ],
    ids=["newer", "damaged", "without its table"],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    lab, file = in_file(tmp_path), tmp_path / "leases.sqlite"
    with lease_device(lab, "local", "one"):
        pass
    spoil(file)
    content = file.read_bytes()
    with pytest.raises(LeaseError) as error, lease_device(lab, "local", "two"):
        pass
    assert said in str(error.value) and "\n" not in str(error.value)
    assert file.read_bytes()[:100] == content[:100]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "leases.sqlite")
    with store._transaction() as rows:
        rows.execute("SELECT 1")

    def full(self: SqliteStore, rows: sqlite3.Connection) -> int:
        rows.execute(f"PRAGMA max_page_count = {rows.execute('PRAGMA page_count').fetchone()[0]}")
        return 1

    monkeypatch.setattr(SqliteStore, "_version", full)
    with pytest.raises(LeaseError, match="database or disk is full"):
        for number in range(2000):
            store.take(f"device {number}", "token", "job")
    monkeypatch.undo()
    assert store.held()


def _execute(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_process_that_has_ended_is_seen_at_once() -> None:
    assert not has_ended(identity())
    assert not has_ended(None) and not has_ended("pid:[1] 1 1")
    code = "from devices.leases.process import identity; print(identity())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert has_ended(done.stdout.strip())


def test_bench_waits_for_nobody_unless_it_is_asked_to(tmp_path: Path) -> None:
    lab = in_file(tmp_path)
    file = tmp_path / "lab.toml"
    file.write_text(file.read_text() + f"[device.desk]\nagent = {json.dumps(fake_agent())}\n")
    words = ["bench", str(fake_artifact(tmp_path / "a").folder), "--device", "desk", "--lab", str(file), "--reps", "1"]
    words += ["--prompt-tokens", "5", "--generate-tokens", "2", "--out", str(tmp_path / "m.json")]
    with lease_device(lab, "local", "another job"):
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 2
        assert "device desk is in use: another job (process " in refused.stderr
        assert not (tmp_path / "m.json").exists()
    waited = CliRunner().invoke(main, [*words, "--wait-s", "60"])
    assert waited.exit_code == 0, waited.output
    assert "nan is no number of seconds" in CliRunner().invoke(main, [*words, "--wait-s", "nan"]).stderr


def test_the_inventory_says_what_there_is_and_who_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.inventory._installed", lambda clients: [])  # no adb server is started for a test
    lab = in_file(tmp_path)
    file = tmp_path / "lab.toml"
    away = '[device.away]\ntransport = "ssh"\nhost = "nobody.invalid"\nconfig = "/dev/null"\n'
    file.write_text(file.read_text() + away)
    with lease_device(lab, "local", "bench a"):
        shown = CliRunner().invoke(main, ["lab", "list", str(file)])
        listed = CliRunner().invoke(main, ["lab", "list", str(file), "--json"])
    assert (shown.exit_code, listed.exit_code) == (0, 0), shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["device", "transport", "state", "memory", "serial", "model", "system"]
    assert lines[1].split()[:4] == ["local", "local", "in", "use"] and " GB " in lines[1]
    assert lines[2].split()[:3] == ["away", "ssh", "away"]
    assert lines[3].startswith("local: used by bench a (process ")
    assert lines[4].startswith("away: ")
    here, there = (json.loads(line) for line in listed.stdout.splitlines())
    assert here["identity"]["memory_bytes"] > 1e8 and here["in_use_by"].startswith("bench a")
    assert (there["state"], there["identity"]) == ("away", None)


def test_phones_of_the_lab_and_phones_that_it_lacks(phone: FakeAdbd, adb: Client, tmp_path: Path) -> None:
    in_file(tmp_path)
    file = tmp_path / "lab.toml"
    with (
        FakeAdbd(FakePhone(tmp_path / "locked"), state="unauthorized") as locked,
        FakeAdbd(FakePhone(tmp_path / "stranger")) as stranger,
    ):
        for adbd in (phone, locked, stranger):
            call_adb(adb, "connect", f"127.0.0.1:{adbd.port}", deadline_s=60)
        rows = {name: connection(adbd, adb) for name, adbd in (("phone", phone), ("locked", locked))}
        file.write_text(file.read_text() + tomli_w.dumps({"device": rows}))
        shown = CliRunner().invoke(main, ["lab", "list", str(file), "--json"])
        found = {entry["name"] or entry["key"]: entry for entry in map(json.loads, shown.stdout.splitlines())}
        assert found["phone"]["state"] == "ready" and found["phone"]["identity"]["system"].startswith(
            "Android 16 fake/"
        )
        assert found["locked"]["state"] in ("unauthorized", "authorizing")
        assert "Allow USB debugging" in found["locked"]["note"]
        lacking = found[f"adb:{adb.server}:127.0.0.1:{stranger.port}"]
        assert lacking["state"] == "ready" and lacking["note"].startswith("add it to the lab file: serial = ")
    for adbd in (phone, locked, stranger):
        call_adb(adb, "disconnect", f"127.0.0.1:{adbd.port}", deadline_s=60)


def test_an_unknown_device_is_refused_before_any_lease(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="unknown device 'sofa'"), lease_device(in_file(tmp_path), "sofa", "job"):
        pass
    assert not (tmp_path / "leases.sqlite").exists()


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_leases_need_no_home(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with lease_device(open_lab(None), "local", "one"):
        (file,) = tmp_path.rglob("leases.sqlite")
    assert file.parent.parent.name.startswith("phi-edge-")


def test_interrupted_work_gives_its_device_back(tmp_path: Path) -> None:
    lab = in_file(tmp_path)
    with pytest.raises(KeyboardInterrupt), lease_device(lab, "local", "one"):
        signal.raise_signal(signal.SIGINT)
    with lease_device(lab, "local", "two"):
        pass
