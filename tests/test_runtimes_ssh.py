"""SshHost against a real sshd on 127.0.0.1: nothing is ever run unquoted, and everything has an end."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.transports.ssh import SshHost
from devices.transports.timeouts import Timeouts
from fakes.odd_text import odd_names, odd_texts
from fakes.pi import NAME, EmulatedPi
from fakes.wire_checks import check_half_a_line, check_names, check_prompts
from runtimes.errors import ConnectionLostError, TransportError

pytestmark = pytest.mark.emulated


@pytest.fixture
def host(emulated_pi: EmulatedPi) -> Iterator[SshHost]:
    opened = SshHost(NAME, config=emulated_pi.config)
    yield opened
    opened.close()


def test_2000_odd_arguments_arrive_as_they_are(host: SshHost) -> None:
    texts = odd_texts(2000, seed=3)
    for start in range(0, 2000, 250):
        batch = texts[start : start + 250]
        # The end mark shows that an empty last argument is one.
        done = host.run(["printf", "%s\\0", *batch, "end"], deadline_s=60)
        assert done.stdout.decode().split("\0") == [*batch, "end", ""]


def test_2000_odd_prompts_reach_the_model_as_they_are(host: SshHost, tmp_path: Path) -> None:
    check_prompts(host, tmp_path)


def test_2000_odd_file_names_are_distinguished(host: SshHost, tmp_path: Path) -> None:
    check_names(host, tmp_path)


def test_any_bytes_arrive_over_stdin(host: SshHost) -> None:
    content = bytes(range(256)) * 300
    assert host.run(["cat"], deadline_s=60, stdin=content).stdout == content


def test_a_nul_in_an_argument_is_refused(host: SshHost) -> None:
    with pytest.raises(TransportError, match="NUL"):
        host.run(["printf", "a\0b"], deadline_s=60)


def test_odd_file_names_arrive_as_they_are(host: SshHost, tmp_path: Path) -> None:
    for number, name in enumerate(odd_names(30, seed=4)):
        local, remote = tmp_path / f"in {number}", tmp_path / name
        local.write_bytes(name.encode())
        host.push(local, str(remote), deadline_s=60)
        assert remote.read_bytes() == local.read_bytes()


def test_lines_of_a_program_with_odd_words(host: SshHost) -> None:
    process = host.start(["sh", "-c", 'echo "$1"; read -r line; echo "$line"', "sh", "a 'b' $c"])
    try:
        process.write_line(b"x \\ 'y' $z")
        process.close_stdin()
        assert list(process.lines()) == [b"a 'b' $c", b"x \\ 'y' $z"]
        assert process.wait(10) == 0
    finally:
        process.close()


def test_the_exit_code_and_the_last_lines_are_reported(host: SshHost) -> None:
    done = host.run(["sh", "-c", "echo one >&2; echo two >&2; exit 7"], deadline_s=60)
    assert done.exit_code == 7
    with pytest.raises(TransportError, match=r"(?s)cleaning failed on the device \(exit code 7\)\n  one\n  two"):
        done.checked("cleaning")


def test_a_command_that_hangs_is_ended(host: SshHost) -> None:
    host.run(["true"], deadline_s=60)
    with pytest.raises(TransportError, match="`sleep 900` did not finish in 1 s"):
        host.run(["sleep", "900"], deadline_s=1)
    assert host.run(["echo", "still here"], deadline_s=60).stdout == b"still here\n"


def test_all_calls_share_one_connection(host: SshHost, emulated_pi: EmulatedPi) -> None:
    ports = {host.run(["sh", "-c", "echo $SSH_CONNECTION"], deadline_s=60).stdout for _ in range(5)}
    assert len(ports) == 1


def test_a_cut_connection_is_reported_and_the_next_call_connects_again(host: SshHost, emulated_pi: EmulatedPi) -> None:
    host.run(["true"], deadline_s=60)
    timer = threading.Timer(0.5, emulated_pi.cut)
    timer.start()
    with pytest.raises(ConnectionLostError, match="the connection to pi5 was lost"):
        host.run(["sleep", "100"], deadline_s=30)
    timer.join()
    assert host.run(["echo", "again"], deadline_s=60).stdout == b"again\n"


def test_a_dead_sshd_is_reported_with_what_to_do(host: SshHost, emulated_pi: EmulatedPi) -> None:
    host.run(["true"], deadline_s=60)
    emulated_pi.stop()
    try:
        with pytest.raises(ConnectionLostError, match=r"(?s)cannot be reached by ssh; try `ssh pi5 true`.*refused"):
            host.run(["true"], deadline_s=60)
    finally:
        emulated_pi.start()
    assert host.run(["echo", "back"], deadline_s=60).stdout == b"back\n"


def test_a_push_goes_on_where_the_last_one_broke(host: SshHost, tmp_path: Path) -> None:
    local, remote = tmp_path / "in", tmp_path / "out"
    local.write_bytes(os.urandom(300_000))
    remote.write_bytes(local.read_bytes()[:123_456])
    before = remote.stat().st_ino
    host.push(local, str(remote), deadline_s=60)
    assert remote.stat().st_ino == before
    assert hashlib.sha256(remote.read_bytes()).digest() == hashlib.sha256(local.read_bytes()).digest()


def test_a_full_disk_is_reported(host: SshHost, emulated_pi: EmulatedPi, tmp_path: Path) -> None:
    local = tmp_path / "in"
    local.write_bytes(os.urandom(100_000))
    with emulated_pi.full_disk(), pytest.raises(TransportError, match="No space left on device"):
        host.push(local, str(tmp_path / "out"), deadline_s=60)
    host.push(local, str(tmp_path / "out"), deadline_s=60)
    assert (tmp_path / "out").read_bytes() == local.read_bytes()


def test_half_a_line_is_reported(host: SshHost) -> None:
    check_half_a_line(host)


def test_a_wire_that_falls_silent_is_reported(emulated_pi: EmulatedPi) -> None:
    """A pulled cable reports nothing: ssh sends three keep-alive messages without an answer."""
    host = SshHost(NAME, config=emulated_pi.config, timeouts=Timeouts(connect_s=5, alive_s=1))
    host.run(["true"], deadline_s=60)
    with emulated_pi.frozen(), pytest.raises(ConnectionLostError, match="the connection to pi5 was lost"):
        host.run(["true"], deadline_s=30)
    assert host.run(["echo", "again"], deadline_s=60).stdout == b"again\n"
    host.close()


def test_closing_leaves_no_connection_behind(emulated_pi: EmulatedPi) -> None:
    host = SshHost(NAME, config=emulated_pi.config)
    host.run(["true"], deadline_s=60)
    control = host.wire.control
    assert control.exists()
    host.close()
    host.close()
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s and _runs(str(control)):
        time.sleep(0.1)
    assert not control.exists() and not _runs(str(control))


def _runs(word: str) -> bool:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return any(word in line for line in listed.splitlines())
