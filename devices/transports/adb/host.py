"""An Android device over the real `adb` client, as a Host. It needs shell v2, which reports exit codes: Android 7 and
later.

adb joins its arguments with spaces and gives them to the device's shell, so every command is quoted once, here.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from devices.transports.adb.devices import LOCAL_CLIENT, Client, adb_command, choose_device
from devices.transports.adb.process import AdbProcess
from devices.transports.child import run_child
from devices.transports.files import Files, PosixFiles
from devices.transports.host import WRITE_BLOCK_BYTES, Finished, last_lines, write_from
from devices.transports.timeouts import DEFAULT_TIMEOUTS, Timeouts
from runtimes.errors import ConnectionLostError, DiskFullError, TransportError

# The device's shell takes one argument of at most 128 KiB (MAX_ARG_STRLEN).
MAX_COMMAND_BYTES = 100_000


class AdbHost:
    """See Host. `serial` None is the only device that adb sees."""

    def __init__(
        self, serial: str | None = None, *, client: Client = LOCAL_CLIENT, timeouts: Timeouts = DEFAULT_TIMEOUTS
    ) -> None:
        """Waits for the device to appear. Raises TransportError unless it is there and ready."""
        self.timeouts = timeouts
        self.files: Files = PosixFiles(self)
        self._client = client
        self.device = choose_device(serial, client, timeouts)
        self._adb = [*adb_command(client), "-s", self.device.serial]
        self._started: list[AdbProcess] = []

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """See Host.run."""
        # adb exits with 1 both when the command did and when the wire broke: the device itself prints how it ended.
        mark = f"phi-edge-{secrets.token_hex(8)}"
        text = f"{quote(command)}; printf '\\n%s %d' {mark} $? >&2"
        done = run_child([*self._adb, "shell", text], deadline_s=deadline_s, stdin=stdin, doing=command)
        stderr, found, code = done.stderr.rpartition(f"\n{mark} ".encode())
        if not found or not re.fullmatch(rb"\s*[0-9]{1,3}\s*", code):
            raise self._broken(command, done)
        return Finished(command=tuple(command), exit_code=int(code), stdout=done.stdout, stderr=stderr)

    def start(self, command: Sequence[str]) -> AdbProcess:
        """See Host.start."""
        process = AdbProcess(self._adb, quote(command), self._kill, self.timeouts)
        self._started = [each for each in self._started if each.wait(0) is None] + [process]
        return process

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push. An interrupted push is continued through the shell, because adb's own starts again."""
        size = local.stat().st_size
        there = self.run(["stat", "-c", "%s", remote], deadline_s=self.timeouts.command_s)
        begun = int(there.stdout) if there.exit_code == 0 and re.fullmatch(rb"\s*[0-9]{1,18}\s*", there.stdout) else 0
        doing = ["push", str(local), remote]
        blocks = begun // WRITE_BLOCK_BYTES
        if blocks > 0 and begun < size:
            with local.open("rb") as file:
                os.lseek(file.fileno(), blocks * WRITE_BLOCK_BYTES, os.SEEK_SET)
                text = f"exec {quote(write_from(remote, blocks))}"
                done = run_child([*self._adb, "shell", text], deadline_s=deadline_s, stdin=file, doing=doing)
        else:
            done = run_child([*self._adb, *doing], deadline_s=deadline_s, doing=doing)
        if done.exit_code != 0:
            raise self._broken(doing, done)

    def boot_id(self) -> str:
        """Differs after every start of the device's kernel."""
        read = self.run(["cat", "/proc/sys/kernel/random/boot_id"], deadline_s=self.timeouts.command_s)
        return read.checked("reading the boot id").decode("ascii", "replace").strip()

    def close(self) -> None:
        """End what was started. The adb server belongs to the whole machine, and keeps running."""
        for process in self._started:
            process.close()
        self._started = []

    def _broken(self, doing: Sequence[str], done: Finished) -> TransportError:
        """The error for a failure of adb itself, not of the command. It names the state in which the device is now."""
        lines = last_lines(done.stderr + done.stdout)
        reason = ""
        try:
            choose_device(self.device.serial, self._client, self.timeouts)  # then a second try finds it there
        except TransportError as error:
            reason = f": {error}"
        what = f"adb failed to {doing[0]}" if doing[0] == "push" else f"the connection broke during {doing[0]}"
        kind = DiskFullError if is_disk_full(lines) else ConnectionLostError
        return kind(f"{what}{reason}", command=doing, exit_code=done.exit_code, last_lines=lines)

    def _kill(self, pid: int, started: str) -> None:
        """Kill a process on the device, if the number is still its own: its start time is compared."""
        script = (
            'seen="$(cat /proc/"$1"/stat 2>/dev/null)"; set -- "$1" "$2" ${seen##*) }; '
            '[ "${22}" = "$2" ] && kill -9 "$1"; true'
        )
        with contextlib.suppress(TransportError):  # a device that is gone has no process
            self.run(["sh", "-c", script, "sh", str(pid), started], deadline_s=self.timeouts.end_s)


def is_disk_full(lines: Sequence[str]) -> bool:
    """Whether adb failed for want of space. adb exits with 1 for every failure and has no code for the reason; the text
    is strerror(ENOSPC), which Android does not translate."""
    return any("No space left on device" in line for line in lines)


def quote(command: Sequence[str]) -> str:
    """The command as one line for the device's shell. Raises TransportError for words that no shell can take."""
    for word in command:
        if "\0" in word:
            raise TransportError(f"no command can contain a NUL character: {word!r:.120}", command=command)
    text = shlex.join(command)
    if len(text.encode()) > MAX_COMMAND_BYTES:
        raise TransportError(
            f"the command has {len(text.encode())} bytes; allowed: {MAX_COMMAND_BYTES}; send the rest on stdin",
            command=command[:1],
        )
    return text
