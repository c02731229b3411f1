"""An Android device over the real `adb` client, as a Host. Shell v2 alone (Android 7 and later): it tells exit codes.

adb joins its arguments with spaces and gives them to the device's shell, so every command is quoted once, here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from devices.transports.adb_devices import LOCAL_CLIENT, Client, adb_command, choose_device
from devices.transports.adb_process import AdbProcess
from devices.transports.host import WRITE_BLOCK_BYTES, Finished, last_lines, write_from
from runtimes.errors import ConnectionLostError, TransportError

APPEAR_S = 10.0  # how long a device may take to appear after a fresh start of the server
SHORT_S = 30.0
KILL_S = 10.0
# The device's shell takes one argument of at most 128 KiB (MAX_ARG_STRLEN).
MAX_COMMAND_BYTES = 100_000


class AdbHost:
    """See Host. `serial` None is the only device that adb sees."""

    def __init__(
        self, serial: str | None = None, *, client: Client = LOCAL_CLIENT, wait_s: float | None = None
    ) -> None:
        """Waits so long for the device (None: APPEAR_S). Raises TransportError unless it is there and ready."""
        self._client = client
        self._wait_s = APPEAR_S if wait_s is None else wait_s
        self.device = choose_device(serial, client, self._wait_s)
        self._adb = [*adb_command(client), "-s", self.device.serial]
        self._started: list[AdbProcess] = []

    def run(self, command: Sequence[str], *, deadline_s: float, stdin: bytes = b"") -> Finished:
        """See Host.run."""
        # adb exits with 1 both when the command did and when the wire broke: the device says itself how it ended.
        mark = f"phi-edge-{secrets.token_hex(8)}"
        text = f"{quote(command)}; printf '\\n%s %d' {mark} $? >&2"
        done = self._call([*self._adb, "shell", text], command, deadline_s, stdin)
        stderr, found, code = done.stderr.rpartition(f"\n{mark} ".encode())
        if not found or not code.strip().isdigit():
            raise self._broken(command, done)
        return Finished(command=tuple(command), exit_code=int(code), stdout=done.stdout, stderr=stderr)

    def start(self, command: Sequence[str]) -> AdbProcess:
        """See Host.start."""
        process = AdbProcess(self._adb, command, quote(command), self._kill)
        self._started = [each for each in self._started if each.wait(0) is None] + [process]
        return process

    def push(self, local: Path, remote: str, *, deadline_s: float) -> None:
        """See Host.push. A beginning that is there is continued through the shell: adb's own push starts anew."""
        size = local.stat().st_size
        there = self.run(["stat", "-c", "%s", remote], deadline_s=SHORT_S)
        begun = int(there.stdout) if there.exit_code == 0 and there.stdout.strip().isdigit() else 0
        doing = ["push", str(local), remote]
        blocks = begun // WRITE_BLOCK_BYTES
        if blocks > 0 and begun < size:
            with local.open("rb") as file:
                os.lseek(file.fileno(), blocks * WRITE_BLOCK_BYTES, os.SEEK_SET)
                text = f"exec {quote(write_from(remote, blocks))}"
                done = self._call([*self._adb, "shell", text], doing, deadline_s, file)
        else:
            done = self._call([*self._adb, *doing], doing, deadline_s)
        if done.returncode != 0:
            raise self._broken(doing, done)

    def pull(self, remote: str, local: Path, *, deadline_s: float) -> None:
        """See Host.pull."""
        part = local.with_name(f".{local.name}.{secrets.token_hex(4)}.part")
        doing = ["pull", remote, str(part)]
        try:
            done = self._call([*self._adb, *doing], doing, deadline_s)
            if done.returncode != 0:
                raise self._broken(doing, done)
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def boot_id(self, deadline_s: float = SHORT_S) -> str:
        """Differs after every start of the device's kernel."""
        read = self.run(["cat", "/proc/sys/kernel/random/boot_id"], deadline_s=deadline_s)
        return read.checked("reading the boot id").decode("ascii", "replace").strip()

    def close(self) -> None:
        """End what was started. The adb server is everybody's, and goes on."""
        for process in self._started:
            process.close()
        self._started = []

    def _call(
        self, command: Sequence[str], doing: Sequence[str], deadline_s: float, stdin: bytes | IO[bytes] = b""
    ) -> subprocess.CompletedProcess[bytes]:
        data, file = (stdin, None) if isinstance(stdin, bytes) else (None, stdin)
        try:
            if file is not None:
                return subprocess.run(command, stdin=file, capture_output=True, timeout=deadline_s, check=False)
            return subprocess.run(command, input=data, capture_output=True, timeout=deadline_s, check=False)
        except subprocess.TimeoutExpired as late:
            raise TransportError(
                f"the device {self.device.serial} did not finish in {deadline_s:g} s: {shlex.join(doing):.200}",
                command=doing,
                last_lines=last_lines(late.stderr or b""),
            ) from None
        except OSError as error:
            raise TransportError(f"adb cannot be run ({error.strerror})", command=doing) from error
        except ValueError as error:
            raise TransportError(f"no command can hold a NUL character: {doing!r:.120}", command=doing) from error

    def _broken(self, doing: Sequence[str], done: subprocess.CompletedProcess[bytes]) -> TransportError:
        """adb failed, not the command: what state the device is in now is the better half of the reason."""
        said = last_lines(done.stderr + done.stdout)
        reason = ""
        try:
            choose_device(self.device.serial, self._client, self._wait_s)  # whoever tries again finds it there
        except TransportError as error:
            reason = f": {error}"
        what = (
            f"adb failed to {doing[0]}" if doing[0] in ("push", "pull") else f"the connection broke during {doing[0]}"
        )
        # A full disk is no matter of trying again.
        kind = TransportError if "No space left" in "".join(said) else ConnectionLostError
        return kind(f"{what}{reason}", command=doing, exit_code=done.returncode, last_lines=said)

    def _kill(self, pid: int, started: str) -> None:
        """Kill a process on the device, if the number is still its own: its start time is compared."""
        script = (
            'seen="$(cat /proc/"$1"/stat 2>/dev/null)"; set -- "$1" "$2" ${seen##*) }; '
            '[ "${22}" = "$2" ] && kill -9 "$1"; true'
        )
        with contextlib.suppress(TransportError):  # a device that is gone has no process
            self.run(["sh", "-c", script, "sh", str(pid), started], deadline_s=KILL_S)


def quote(command: Sequence[str]) -> str:
    """The command as one line for the device's shell. Raises TransportError for what no shell could be given."""
    for word in command:
        if "\0" in word:
            raise TransportError(f"no command can hold a NUL character: {word!r:.120}", command=command)
    text = shlex.join(command)
    if len(text.encode()) > MAX_COMMAND_BYTES:
        raise TransportError(
            f"the command has {len(text.encode())} bytes; allowed: {MAX_COMMAND_BYTES}; send the rest on stdin",
            command=command[:1],
        )
    return text
