"""WindowsHost against a real sshd in front of Wine: cmd.exe and Python for Windows take the words apart themselves."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.transports.windows.files import check_name
from devices.transports.windows.host import WindowsHost
from fakes.pi import EmulatedPi
from fakes.windows import NAME, EmulatedWindows
from runtimes.errors import TransportError

ODD = [
    *("'", '"', '\\"', "\\", "\\\\", "%OS%", "%", "^", "!", "&", "|", "<", ">", "(", ")", "@", "~", ";", ",", "=", " "),
    *("\t", "\n", "\r\n", "$HOME", "$(id)", "`id`", "/c", "-c", "*", "?", "é", "日本", "😀", "\x01", "\x1a", "a" * 50),
]
ECHO = "import sys, json; print(json.dumps(sys.argv[1:]))"


@pytest.fixture
def host(emulated_windows: EmulatedWindows) -> Iterator[WindowsHost]:
    opened = WindowsHost(NAME, config=emulated_windows.config)
    yield opened
    opened.close()


@pytest.fixture
def folder(host: WindowsHost, emulated_windows: EmulatedWindows) -> str:
    return host.files.make_folder(emulated_windows.windows_cache)


def odd_text(chance: random.Random) -> str:
    return "".join(chance.choice(ODD) for _ in range(chance.randrange(0, 8)))


@pytest.mark.wine
def test_2000_odd_words_arrive_as_they_are(host: WindowsHost) -> None:
    chance = random.Random(3)
    for _ in range(4):
        texts = [odd_text(chance) for _ in range(500)]
        done = host.run(["python", "-c", ECHO, *texts], deadline_s=60)
        assert json.loads(done.checked("echoing")) == texts


@pytest.mark.wine
def test_any_bytes_arrive_over_stdin(host: WindowsHost) -> None:
    content = bytes(range(256)) * 300
    echo = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
    assert host.run(["python", "-c", echo], deadline_s=60, stdin=content).stdout == content


@pytest.mark.wine
def test_lines_of_a_program_with_odd_words_and_its_environment(host: WindowsHost) -> None:
    talk = "import os, sys; print(os.environ['ODD'], sys.argv[1], flush=True); print(input())"
    process = host.start(["env", "ODD=%OS% & 1", "python", "-X", "utf8", "-c", talk, 'a "b" ^%c'])
    try:
        process.write_line(b"x \\ 'y' $z")
        lines = [line.rstrip(b"\r") for line in process.lines()]
        assert lines == [b'%OS% & 1 a "b" ^%c', b"x \\ 'y' $z"]
        assert process.wait(10) == 0
    finally:
        process.close()


@pytest.mark.wine
def test_the_exit_code_and_the_last_lines_are_reported(host: WindowsHost) -> None:
    done = host.run(["python", "-c", "import sys; sys.exit('one\\ntwo')"], deadline_s=60)
    with pytest.raises(TransportError, match=r"(?s)cleaning failed on the device \(exit code 1\)\n  one\n  two"):
        done.checked("cleaning")
    crashed = host.run(["python", "-c", "import os; os._exit(0xC0000005 - 2**32)"], deadline_s=60)
    assert crashed.exit_code == 254 and b"0xc0000005" in crashed.stderr


@pytest.mark.wine
def test_a_missing_program_and_a_missing_file_are_reported(host: WindowsHost, folder: str) -> None:
    with pytest.raises(TransportError, match=r"(?s)starting failed on the device .*not found"):
        host.run(["no-such-program"], deadline_s=60).checked("starting")
    with pytest.raises(TransportError, match=r"(?s)sha256 .*absent failed on the device .*absent"):
        host.files.sha256(f"{folder}/absent", deadline_s=60)


@pytest.mark.wine
def test_a_command_that_hangs_is_ended(host: WindowsHost) -> None:
    host.shell()
    with pytest.raises(TransportError, match="did not finish in 2 s"):
        host.run(["python", "-c", "import time; time.sleep(900)"], deadline_s=2)


@pytest.mark.wine
def test_odd_file_names_arrive_as_they_are(
    host: WindowsHost, folder: str, emulated_windows: EmulatedWindows, tmp_path: Path
) -> None:
    local = tmp_path / "in"
    for name in ("it's %OS% & ^(co) $x;`!", "日本 é😀"):
        local.write_bytes(os.urandom(1000))
        host.push(local, f"{folder}/{name}", deadline_s=60)
        assert (emulated_windows.cache / name).read_bytes() == local.read_bytes()


@pytest.mark.wine
def test_a_push_goes_on_where_the_last_one_broke(
    host: WindowsHost, folder: str, emulated_windows: EmulatedWindows, tmp_path: Path
) -> None:
    local, remote = tmp_path / "in", emulated_windows.cache / "resumed"
    local.write_bytes(os.urandom(300_000))
    remote.write_bytes(local.read_bytes()[:123_456])
    before = remote.stat().st_ino
    host.push(local, f"{folder}/resumed", deadline_s=60)
    assert remote.stat().st_ino == before and remote.read_bytes() == local.read_bytes()
    wanted = hashlib.sha256(local.read_bytes()).hexdigest()
    paths = f"{folder}/resumed", f"{folder}/whole"
    assert host.files.verify_and_rename(*paths, wanted, deadline_s=60)
    assert host.files.exist(folder, ["resumed", "whole"]) == [False, True]
    assert host.files.verify_and_rename(*paths, wanted, deadline_s=60)  # another client was first
    assert not host.files.verify_and_rename(f"{folder}/whole", f"{folder}/other", "0" * 64, deadline_s=60)
    assert not list(emulated_windows.cache.glob("whole*")) and not (emulated_windows.cache / "other").exists()


@pytest.mark.parametrize(
    "name", ["a:b", 'a"b', "a?", "a*", "a|b", "<a>", "a\nb", "a\0b", "a.", "a ", "NUL", "con.txt", "COM1", "a\\b"]
)
def test_a_name_that_windows_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(TransportError, match="cannot be a file's name on Windows: none of"):
        check_name(f"C:/cache/{name}")
    check_name(f"C:/cache/{name}/plain")


@pytest.mark.parametrize("python", ["py & calc", 'C:\\"x"', "%PYTHON%", "a\nb", "$x", "-c"])
def test_a_python_that_a_shell_would_change_is_refused(python: str) -> None:
    with pytest.raises(TransportError, match="allowed are letters, digits, spaces"):
        WindowsHost("nobody", python=python)


def test_a_nul_in_a_word_is_refused() -> None:
    host = WindowsHost("nobody")
    with pytest.raises(TransportError, match="contains a NUL"):
        host.run(["python", "a\0b"], deadline_s=1)
    host.close()


@pytest.mark.emulated
def test_a_posix_shell_is_reported(emulated_pi: EmulatedPi) -> None:
    host = WindowsHost("pi5", config=emulated_pi.config)
    try:
        with pytest.raises(TransportError, match=r"neither cmd\.exe nor PowerShell; .* transport = \"ssh\""):
            host.run(["python"], deadline_s=30)
    finally:
        host.close()
