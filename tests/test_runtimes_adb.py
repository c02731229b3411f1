"""The real adb client against a fake phone: commands, files, states, and what breaks on the way."""

from __future__ import annotations

import hashlib
import random
import shlex
import subprocess
import threading
import time
from pathlib import Path

import pytest

from devices.transports.adb.devices import Client, choose_device, parse_devices
from devices.transports.adb.host import AdbHost
from devices.transports.timeouts import Timeouts
from fakes.adbd import FakeAdbd
from fakes.odd_text import odd_names, odd_texts
from fakes.wire_checks import check_half_a_line, check_names, check_prompts
from runtimes.errors import DiskFullError, TransportError

pytestmark = pytest.mark.emulated
HURRIED = Timeouts(connect_s=2.0)
AT_ONCE = Timeouts(connect_s=0.0)


@pytest.fixture
def host(phone: FakeAdbd, adb: Client) -> AdbHost:
    return AdbHost(f"127.0.0.1:{phone.port}", client=adb, timeouts=HURRIED)


def test_a_command_gives_its_output_and_its_exit_code(host: AdbHost) -> None:
    done = host.run(["sh", "-c", "cat; echo no >&2; exit 7"], deadline_s=10, stdin=b"in\0put\xff")
    assert (done.exit_code, done.stdout, done.stderr) == (7, b"in\0put\xff", b"no\n")
    assert host.run(["true"], deadline_s=60).exit_code == 0
    with pytest.raises(TransportError, match=r"looking failed on the device \(exit code 7\)"):
        done.checked("looking")


def test_exit_code_1_of_a_command_is_not_a_broken_wire(host: AdbHost) -> None:
    assert host.run(["false"], deadline_s=60).exit_code == 1


def test_a_command_has_a_deadline(host: AdbHost) -> None:
    with pytest.raises(TransportError, match=r"`sleep 900` did not finish in 0\.5 s"):
        host.run(["sleep", "900"], deadline_s=0.5)


def test_2000_odd_arguments_arrive_as_they_are(host: AdbHost) -> None:
    texts = odd_texts(2000, seed=3)
    for start in range(0, 2000, 250):
        batch = texts[start : start + 250]
        # The end mark shows that an empty last argument is one.
        done = host.run(["printf", "%s\\0", *batch, "end"], deadline_s=30)
        assert done.checked("printing").decode().split("\0") == [*batch, "end", ""]


def test_2000_odd_prompts_reach_the_model_as_they_are(host: AdbHost, tmp_path: Path) -> None:
    check_prompts(host, tmp_path)


def test_2000_odd_file_names_are_distinguished(host: AdbHost, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    check_names(host, folder)


def test_odd_file_names_arrive_as_they_are(host: AdbHost, phone: FakeAdbd, tmp_path: Path) -> None:
    for number, name in enumerate(odd_names(30, seed=4)):
        local, remote = tmp_path / f"in {number}", phone.phone.folder / name
        local.write_bytes(name.encode())
        host.push(local, str(remote), deadline_s=60)
        assert remote.read_bytes() == local.read_bytes()


def test_a_nul_is_refused_with_its_reason(host: AdbHost) -> None:
    with pytest.raises(TransportError, match="no command can contain a NUL"):
        host.run(["echo", "a\0b"], deadline_s=5)
    with pytest.raises(TransportError, match=r"allowed: 100000; send the rest on stdin"):
        host.run(["echo", "a" * 200_000], deadline_s=5)


def test_push_continues_a_beginning(host: AdbHost, phone: FakeAdbd, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(3_000_000)
    (tmp_path / "file").write_bytes(data)
    remote = phone.phone.folder / "file.part"
    remote.write_bytes(data[:1_234_567])
    host.push(tmp_path / "file", str(remote), deadline_s=30)
    assert hashlib.sha256(remote.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_cable_pulled_in_push_is_reported_and_the_next_push_continues(
    host: AdbHost, phone: FakeAdbd, tmp_path: Path
) -> None:
    data = random.Random(0).randbytes(5_000_000)
    (tmp_path / "file").write_bytes(data)
    remote = phone.phone.folder / "file.part"
    phone.unplug_after_bytes(2_000_000)
    with pytest.raises(TransportError, match="adb failed to push"):
        host.push(tmp_path / "file", str(remote), deadline_s=30)
    assert 0 < remote.stat().st_size < 5_000_000
    phone.plug()
    again = AdbHost(host.device.serial, client=host._client)
    again.push(tmp_path / "file", str(remote), deadline_s=30)
    assert remote.read_bytes() == data


def test_a_full_disk_is_reported(host: AdbHost, phone: FakeAdbd, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2_000_000))
    phone.phone.free_bytes = 1_000_000
    with pytest.raises(DiskFullError, match="No space left on device"):
        host.push(tmp_path / "file", str(phone.phone.folder / "file.part"), deadline_s=30)


def test_a_program_reads_and_writes_lines(host: AdbHost) -> None:
    process = host.start(["sh", "-c", 'while read -r each; do echo "got $each"; done; echo end >&2; exit 3'])
    lines = process.lines()
    process.write_line(b"one")
    assert next(lines) == b"got one"
    process.write_line("zwei 漢".encode())
    assert next(lines).decode() == "got zwei 漢"
    process.close_stdin()
    assert list(lines) == []
    assert process.wait(10) == 3
    assert process.last_lines() == ["end"]
    process.close()
    process.close()


def test_closing_ends_a_program_that_does_not_want_to(host: AdbHost) -> None:
    process = host.start(["sh", "-c", "trap '' HUP PIPE; echo $$; while :; do sleep 0.1; done"])
    pid = int(next(process.lines()))
    assert Path(f"/proc/{pid}").exists()
    process.close()
    until_s = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_a_pulled_cable_ends_the_lines(host: AdbHost, phone: FakeAdbd) -> None:
    process = host.start(["sh", "-c", "echo one; printf half; cat"])
    lines = process.lines()
    assert next(lines) == b"one"
    threading.Timer(0.2, phone.unplug).start()
    assert list(lines) == []  # half a line is none
    process.close()
    with pytest.raises(TransportError, match="the connection broke during true"):
        host.run(["true"], deadline_s=20)


def test_half_a_line_is_reported(host: AdbHost) -> None:
    check_half_a_line(host)


def test_a_phone_that_falls_silent_is_reported(phone: FakeAdbd, adb: Client) -> None:
    """A dead wire reports nothing: each call ends at its deadline, also the calls that end what was started."""
    host = AdbHost(f"127.0.0.1:{phone.port}", client=adb, timeouts=Timeouts(connect_s=2.0, end_s=0.5, kill_s=0.2))
    process = host.start(["cat"])
    process.write_line(b"one")
    assert next(process.lines()) == b"one"
    phone.frozen = True
    with pytest.raises(TransportError, match=r"`true` did not finish in 0\.5 s"):
        host.run(["true"], deadline_s=0.5)
    process.close()


def test_a_reboot_changes_the_boot_id(host: AdbHost, phone: FakeAdbd) -> None:
    before = host.boot_id()
    assert before == host.boot_id()
    phone.reboot()
    until_s = time.monotonic() + 60
    while True:
        try:
            after = AdbHost(host.device.serial, client=host._client).boot_id()
        except TransportError as error:
            assert "device offline" in str(error)  # the server has not found yet that the wire was cut
            assert time.monotonic() < until_s
        else:
            break
    assert after not in ("", before)


def test_a_killed_server_is_started_again(host: AdbHost, adb: Client) -> None:
    process = host.start(["cat"])
    process.write_line(b"a")
    lines = process.lines()
    assert next(lines) == b"a"
    subprocess.run(["adb", "-P", (adb.server or "").rpartition(":")[2], "kill-server"], check=True, capture_output=True)
    assert list(lines) == []
    process.close()
    again = AdbHost(host.device.serial, client=adb)
    assert again.run(["true"], deadline_s=60).exit_code == 0


def test_an_unauthorized_phone(phone: FakeAdbd, adb: Client) -> None:
    phone.drop()
    phone.state = "unauthorized"
    with pytest.raises(TransportError, match=r"Allow|failed to authenticate"):
        AdbHost(f"127.0.0.1:{phone.port}", client=adb, timeouts=Timeouts(connect_s=1.0))


def test_no_such_device_and_several(phone: FakeAdbd, adb: Client) -> None:
    serial = f"127.0.0.1:{phone.port}"
    choose_device(serial, adb, AT_ONCE)
    with pytest.raises(TransportError, match=rf"does not see device X1; it sees: .*{serial} \(device\)"):
        choose_device("X1", adb, AT_ONCE)
    with pytest.raises(TransportError, match=r"does not see device 127\.0\.0\.1:1"):
        choose_device("127.0.0.1:1", adb, AT_ONCE)


LISTED = """* daemon started successfully
List of devices attached
0A041FDD4003B6         device usb:1-1 product:oriole model:Pixel_6 device:oriole transport_id:1
emulator-5554          offline transport_id:2
R58N123                unauthorized usb:1-2 transport_id:3
????????????           no permissions (missing udev rules? user is in the plugdev group); see [http://x] usb:1-4
"""


@pytest.mark.parametrize(
    ("serial", "message"),
    [
        (None, "several devices"),
        ("emulator-5554", "unplug the cable and plug it in again, or run `adb reconnect offline`"),
        ("R58N123", "tap Allow"),
        ("????????????", "install udev rules"),
        ("other", "it sees: 0A041FDD4003B6"),
    ],
)
def test_every_state_says_what_to_do(serial: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.transports.adb.devices.list_devices", lambda client, timeouts: parse_devices(LISTED))
    with pytest.raises(TransportError) as caught:
        choose_device(serial, Client(), AT_ONCE)
    assert message in str(caught.value)
    assert choose_device("0A041FDD4003B6", Client(), AT_ONCE).model == "Pixel_6"


def test_without_adb_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TransportError, match="apt-get install adb"):
        AdbHost("x")


def test_quoting_is_the_only_way_in(host: AdbHost) -> None:
    assert shlex.split(shlex.join(["a b", "$x"])) == ["a b", "$x"]
    assert host.run(["echo", "$HOME;", "`id`"], deadline_s=5).stdout == b"$HOME; `id`\n"


def test_a_phone_that_does_not_answer_is_no_hang(phone: FakeAdbd, adb: Client) -> None:
    phone.state = "offline"
    with pytest.raises(TransportError, match="is in state 'offline': the phone does not answer adb"):
        AdbHost(f"127.0.0.1:{phone.port}", client=adb, timeouts=Timeouts(connect_s=0.5))
